"""Mixes of parts: whatever the API, the store, the cache and the notes hold, never wrong bytes.

The other side is in memory here, so that thousands of mixes take seconds; tests/integration has the real one.
"""

import hashlib
import itertools
import os
import random
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from azaion_loader import security
from azaion_loader.errors import (
    DiskFull,
    IntegrityError,
    InvalidName,
    LoaderError,
    ResourceNotFound,
    TooLarge,
    UpstreamError,
)
from azaion_loader.loaded_resource import LoadedResource
from azaion_loader.part_cache import PartCache
from azaion_loader.part_proof import ONE_MESSAGE, PartClaims, TransferProof, cut_at, head_digest
from azaion_loader.resources import Resources
from azaion_loader.store_answers import ObjectInfo

FOLDER = "models"


@dataclass(frozen=True)
class Version:
    """One version of a resource, sealed and cut."""

    plain: bytes
    small: bytes
    big: bytes
    metadata: Mapping[str, str]
    etag: str


def make_version(name: str, size: int, seed: int) -> Version:
    plain = random.Random(seed).randbytes(size)
    sealed = security.encrypt(plain, security.resource_key())
    count = cut_at(len(sealed))
    mac = security.PartMac(FOLDER, name)
    mac.update(sealed)
    claims = PartClaims(head_digest(sealed[:count]), mac.hexdigest())
    return Version(plain, sealed[:count], sealed[count:], claims.metadata(), f"etag-{name}-{seed}")


@dataclass
class Side:
    """The Resource API and the object store; `bigs` holds (bytes, metadata, etag)."""

    smalls: dict[str, bytes] = field(default_factory=dict)
    bigs: dict[str, tuple[bytes, Mapping[str, str], str]] = field(default_factory=dict)
    small_reads: int = 0
    downloads: int = 0
    uploads: int = 0
    fail_upload: LoaderError | None = None
    fail_small: LoaderError | None = None
    # Called between reads, to change what the next one sees.
    on_small: list[Version] = field(default_factory=list)

    def put(self, name: str, version: Version) -> None:
        self.smalls[name] = version.small
        self.bigs[name] = (version.big, version.metadata, version.etag)

    def request(self, folder: str, name: str) -> "SideRequest":
        return SideRequest(self, folder, name)


class SideRequest:
    def __init__(self, side: Side, folder: str, name: str) -> None:
        self.side, self.folder, self.name = side, folder, name

    def read_small(self) -> bytes:
        self.side.small_reads += 1
        if self.name not in self.side.smalls:
            raise ResourceNotFound("none")
        small = self.side.smalls[self.name]
        if self.side.on_small:
            self.side.put(self.name, self.side.on_small.pop())
        return small

    def write_small(self, data: bytes) -> None:
        if self.side.fail_small is not None:
            raise self.side.fail_small
        self.side.smalls[self.name] = data

    def find_big(self) -> ObjectInfo | None:
        if self.name not in self.side.bigs:
            return None
        data, metadata, etag = self.side.bigs[self.name]
        return ObjectInfo(len(data), etag, dict(metadata))

    def download_big(self, target: Path, _found: ObjectInfo, proof: TransferProof) -> ObjectInfo:
        self.side.downloads += 1
        data, metadata, etag = self.side.bigs[self.name]
        info = ObjectInfo(len(data), etag, dict(metadata))
        proof.reset()
        proof.update(memoryview(data))
        proof.prove(info)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return info

    def upload_big(self, source: Path, metadata: Mapping[str, str]) -> str:
        if self.side.fail_upload is not None:
            raise self.side.fail_upload
        self.side.uploads += 1
        etag = f"uploaded-{self.side.uploads}"
        self.side.bigs[self.name] = (source.read_bytes(), dict(metadata), etag)
        return etag


class Device:
    """A device with its cache over a side."""

    def __init__(
        self, root: Path, side: Side, *, require_part_mac: bool = False, cache_max_bytes: int = 1 << 30
    ) -> None:
        self.root = root
        self.side = side
        self.cache = PartCache(root, root / ".azaion-loader", cache_max_bytes, 5.0)
        self.require_part_mac = require_part_mac
        self.restart()

    def restart(self) -> None:
        self.resources = Resources(
            self.side, self.cache, require_part_mac=self.require_part_mac, upload_max_bytes=1 << 22, reread_pause_s=0.0
        )

    def load(self, name: str = "m.bin") -> bytes:
        loaded = self.resources.load(FOLDER, name)
        plain = b"".join(loaded.chunks())
        assert len(plain) == loaded.length
        loaded.close()
        return plain

    def publish(self, plain: bytes, name: str = "m.bin", *, early_folder: bool = True, piece: int = 1000) -> None:
        with self.resources.publish(name, folder=FOLDER if early_folder else None, expected_bytes=len(plain)) as upload:
            for start in range(0, len(plain), piece):
                upload.write(plain[start : start + piece])
            upload.commit(FOLDER)

    def files(self) -> set[str]:
        """Return all files below the device's directory but locks and notes."""
        found = (path for path in self.root.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)) for path in found if path.suffix not in {".lock", ".json"}}


@pytest.fixture(autouse=True)
def _no_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of mixes would wait for the disk alone; no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def side() -> Side:
    return Side()


@pytest.fixture
def device(tmp_path: Path, side: Side) -> Device:
    return Device(tmp_path, side)


EDGES = [0, 1, 15, 16, 17, 31, 32, 10207, 10208, 10209, 10223, 10224, 10225, 262144 + 3072, 300_000]


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("early_folder", [True, False])
def test_round_trip(device: Device, tmp_path: Path, size: int, early_folder: bool) -> None:
    plain = random.Random(size).randbytes(size)
    device.publish(plain, early_folder=early_folder)
    total = 16 + (size // 16 + 1) * 16
    assert len(device.side.smalls["m.bin"]) == min(3072, total * 30 // 100)
    assert device.load() == plain
    assert device.side.downloads == 0
    # Another device, without a cache, proves the same MAC.
    other = Device(tmp_path / "other", device.side, require_part_mac=True)
    assert other.load() == plain
    assert other.load() == plain
    assert device.side.downloads == 1
    assert device.files() - {f"other/{FOLDER}/m.bin.big"} == {f"{FOLDER}/m.bin.big"}


@pytest.mark.parametrize("cut", [1, 9, 16, 17, 31, 47])
def test_any_cut_is_read(device: Device, cut: int) -> None:
    sealed = security.encrypt(b"twenty bytes, or so.", security.resource_key())
    device.side.smalls["m.bin"] = sealed[:cut]
    device.side.bigs["m.bin"] = (sealed[cut:], {}, "e")
    assert device.load() == b"twenty bytes, or so."


@pytest.mark.parametrize("chunk", [1, 15, 16, 17, 1000, 1 << 20])
def test_chunks_of_any_size(device: Device, chunk: int) -> None:
    plain = random.Random(1).randbytes(5000)
    device.publish(plain)
    loaded = device.resources.load(FOLDER, "m.bin")
    twin = loaded.duplicate()
    loaded.close()
    loaded.close()
    assert b"".join(twin.chunks(chunk)) == plain
    twin.close()


SMALLS = ["v1", "v2", "other", "empty", "cut", "long", "flip"]
BIGS = ["v1", "v2", "other", "missing", "cut", "cut16", "flip", "long16", "swapped"]
METADATA = ["v1", "v2", "other", "none", "no mac", "format 2", "UPPER v1", "wrong hex"]
CACHES = ["none", "v1", "v2", "v1 flipped", "v2 under v1's note", "v1 without note", "v2 without note", "cut", "fifo"]


def mangle(kind: str, data: bytes, source: random.Random) -> bytes:
    at = source.randrange(len(data))
    return {
        "empty": b"",
        "cut": data[:-1],
        "cut16": data[:-16],
        "long": data + b"x",
        "long16": data + bytes(16),
        "flip": data[:at] + bytes([data[at] ^ (1 << source.randrange(8))]) + data[at + 1 :],
        "swapped": data[16:32] + data[:16] + data[32:],
    }[kind]


def mixes(count: int, seed: int) -> list[tuple[str, str, str, str, bool]]:
    """Return seeded mixes: half of any kind, half near the truth, where a mistake would be served."""
    every = list(itertools.product(SMALLS, BIGS, METADATA, CACHES, [False, True]))
    near = [
        mix for mix in every
        if mix[0] in {"v1", "v2"} and mix[1] in {"v1", "v2", "missing"} and mix[2] in {"v1", "v2", "none"}
    ]  # fmt: skip
    source = random.Random(seed)
    return [source.choice(near if source.random() < 0.5 else every) for _ in range(count)]


def run_mixes(tmp_path: Path, count: int) -> None:
    served = refused = 0
    messages: set[str] = set()
    for number, (small, big, metadata, cached, restarted) in enumerate(mixes(count, 20261121)):
        source = random.Random(number)
        size = source.choice([0, 40, 200, 5000, 10207, 10300])
        versions = {
            "v1": make_version("m.bin", size, number * 3),
            "v2": make_version("m.bin", size, number * 3 + 1),
            "other": make_version("n.bin", size, number * 3 + 2),
        }
        side = Side()
        device = Device(tmp_path / str(number), side)
        # The name is known in format 1, by an earlier version that nobody has any more.
        device.publish(b"earlier")
        path = device.cache.path(FOLDER, "m.bin")
        path.unlink()
        device.cache.notes.forget_part(FOLDER, "m.bin")
        if cached.startswith("v"):
            side.put("m.bin", versions[cached[:2]])
            assert device.load() == versions[cached[:2]].plain
            if cached.endswith("flipped"):
                path.write_bytes(mangle("flip", path.read_bytes(), source))
            elif cached.endswith("note"):
                if cached.startswith("v2 under"):
                    side.put("m.bin", versions["v1"])
                    device.load()
                    path.write_bytes(versions["v2"].big)
                else:
                    device.cache.notes.forget_part(FOLDER, "m.bin")
        elif cached == "cut":
            path.write_bytes(versions["v1"].big[:-16])
        elif cached == "fifo":
            os.mkfifo(path)
        if restarted:
            device.restart()
        head = versions[small].small if small in versions else mangle(small, versions["v1"].small, source)
        side.smalls["m.bin"] = head
        if big == "missing":
            del_big = side.bigs.pop("m.bin", None)
            assert del_big is not None
        else:
            tail = versions[big].big if big in versions else mangle(big, versions["v1"].big, source)
            claims = {
                "none": {},
                "no mac": {"azaion-format": "1", "azaion-head-sha256": head_digest(head)},
                "format 2": {**versions["v1"].metadata, "azaion-format": "2"},
                "UPPER v1": {name.upper(): value.upper() for name, value in versions["v1"].metadata.items()},
                "wrong hex": {**versions["v1"].metadata, "azaion-mac": "0" * 63},
            }.get(metadata) if metadata not in versions else versions[metadata].metadata  # fmt: skip
            assert claims is not None
            side.bigs["m.bin"] = (tail, claims, versions[big].etag if big in versions else "e-mangled")
        mix = (number, size, small, big, metadata, cached, restarted)
        try:
            plain = device.load()
        except IntegrityError as err:
            messages.add(err.message)
            refused += 1
            plain = None
        expected = next((v.plain for v in versions.values() if v.small == head), None)
        whole = small == big == metadata.removeprefix("UPPER ") or (small, cached) in {("v1", "v1"), ("v2", "v2")}
        if small == "other":
            # Never proved under this name, wherever it comes from.
            assert plain is None, mix
        elif whole:
            assert plain == expected, mix
        else:
            assert plain is None or plain == expected, mix
        served += plain is not None
        assert not [name for name in device.files() if name.startswith(".")], mix
        shutil.rmtree(device.root)
    assert messages == {ONE_MESSAGE}
    assert served > count / 20
    assert refused > count / 3


def test_mixes_never_give_wrong_bytes(tmp_path: Path) -> None:
    run_mixes(tmp_path, 300)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_mixes_never_give_wrong_bytes(tmp_path: Path) -> None:
    run_mixes(tmp_path, 10_000)


def test_flipped_cached_byte_is_noticed_after_a_restart_and_while_running(device: Device) -> None:
    plain = random.Random(2).randbytes(50_000)
    device.publish(plain)
    path = device.cache.path(FOLDER, "m.bin")
    for restart in (True, False):
        data = bytearray(path.read_bytes())
        data[20_000] ^= 1
        path.write_bytes(data)
        if restart:
            device.restart()
        before = device.side.downloads
        assert device.load() == plain
        assert device.side.downloads == before + 1


def test_part_from_the_factory_is_proved_once(tmp_path: Path) -> None:
    version = make_version("m.bin", 20_000, 1)
    side = Side()
    side.put("m.bin", version)
    device = Device(tmp_path, side)
    path = device.cache.path(FOLDER, "m.bin")
    path.parent.mkdir()
    path.write_bytes(version.big)
    assert device.load() == version.plain
    assert side.downloads == 0
    del side.bigs["m.bin"]
    assert device.load() == version.plain


@pytest.mark.parametrize("right", [True, False])
def test_part_from_the_factory_of_an_older_client(tmp_path: Path, right: bool) -> None:
    version = make_version("m.bin", 20_000, 1)
    side = Side()
    side.smalls["m.bin"] = version.small
    side.bigs["m.bin"] = (version.big, {}, hashlib.md5(version.big, usedforsecurity=False).hexdigest())
    device = Device(tmp_path, side)
    path = device.cache.path(FOLDER, "m.bin")
    path.parent.mkdir()
    path.write_bytes(version.big if right else mangle("flip", version.big, random.Random(1)))
    assert device.load() == version.plain
    assert side.downloads == (0 if right else 1)


def test_object_of_an_older_client_is_accepted_unless_a_mac_is_required(tmp_path: Path, side: Side) -> None:
    version = make_version("m.bin", 20_000, 1)
    side.smalls["m.bin"] = version.small
    side.bigs["m.bin"] = (version.big, {}, "e")
    device = Device(tmp_path / "a", side)
    assert device.load() == version.plain
    device.require_part_mac = True
    device.restart()
    with pytest.raises(IntegrityError):
        device.load()


def test_new_head_with_the_tail_it_replaced_is_refused_even_without_metadata(device: Device) -> None:
    first, second = make_version("m.bin", 20_000, 1), make_version("m.bin", 20_000, 2)
    device.side.smalls["m.bin"] = first.small
    device.side.bigs["m.bin"] = (first.big, {}, "e")
    assert device.load() == first.plain
    device.side.smalls["m.bin"] = second.small
    with pytest.raises(IntegrityError):
        device.load()


def test_upload_elsewhere_between_its_two_halves_is_read_again(device: Device) -> None:
    first, second = make_version("m.bin", 20_000, 1), make_version("m.bin", 20_000, 2)
    device.side.put("m.bin", first)
    device.side.bigs["m.bin"] = (second.big, second.metadata, second.etag)
    device.side.on_small = [second]
    assert device.load() == second.plain
    assert device.side.small_reads == 2


def test_missing_resource_asks_once_and_leaves_nothing(device: Device) -> None:
    with pytest.raises(ResourceNotFound):
        device.load()
    assert device.side.small_reads == 1
    assert not list(device.root.rglob("*"))


@pytest.mark.parametrize("name", ["..", "a/b", "", "a\0", ".x", "é", "a" * 129])
def test_names_outside_the_rule(device: Device, name: str) -> None:
    with pytest.raises(InvalidName):
        device.resources.load(FOLDER, name)
    with pytest.raises(InvalidName):
        device.resources.load(name, "m.bin")
    with pytest.raises(InvalidName):
        device.resources.publish(name)
    with pytest.raises(InvalidName):
        device.resources.publish("m.bin", folder=name)


def test_abandoned_upload_leaves_nothing(device: Device) -> None:
    upload = device.resources.publish("m.bin")
    upload.write(bytes(100_000))
    assert device.files()
    upload.close()
    upload.write(bytes(100_000))
    upload.close()
    assert device.files() == set()
    assert not device.side.uploads


def test_upload_over_the_limit(device: Device) -> None:
    with device.resources.publish("m.bin") as upload:
        upload.write(bytes(1 << 22))
        with pytest.raises(TooLarge):
            upload.write(b"x")
    assert device.files() == set()


@pytest.mark.parametrize("where", ["fail_upload", "fail_small"])
def test_failed_upload_leaves_the_cached_version_loadable(device: Device, where: str) -> None:
    device.publish(b"first")
    setattr(device.side, where, UpstreamError("no"))
    with pytest.raises(UpstreamError):
        device.publish(b"second")
    assert device.files() == {f"{FOLDER}/m.bin.big"}
    assert device.load() == b"first"


def test_upload_whose_part_can_not_be_kept_is_still_published(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.cache.path(FOLDER, "m.bin").mkdir(parents=True)
    device.publish(b"plain")
    assert device.side.uploads == 1
    device.cache.path(FOLDER, "m.bin").rmdir()
    assert device.load() == b"plain"


def test_no_space_for_a_transfer_or_an_upload(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.side.put("m.bin", make_version("m.bin", 20_000, 1))
    monkeypatch.setattr("azaion_loader.files.free_bytes", lambda _path: 1000)
    with pytest.raises(DiskFull, match="1000 bytes free"):
        device.load()
    with pytest.raises(DiskFull):
        device.resources.publish("m.bin", expected_bytes=5000)
    assert device.files() == set()


def test_cache_bound_holds_and_what_is_read_stays_readable(tmp_path: Path, side: Side) -> None:
    device = Device(tmp_path, side, cache_max_bytes=50_000)
    device.publish(b"a" * 30_000, "a")
    reading = device.resources.load(FOLDER, "a")
    device.publish(b"b" * 30_000, "b")
    device.publish(b"c" * 30_000, "c")
    assert device.cache.path(FOLDER, "a").exists()
    assert not device.cache.path(FOLDER, "b").exists()
    assert b"".join(reading.chunks()) == b"a" * 30_000
    reading.close()
    assert device.load("b") == b"b" * 30_000
    assert not device.cache.path(FOLDER, "a").exists()


def test_reader_keeps_its_version_while_another_is_published(device: Device) -> None:
    device.publish(b"1" * 600_000, piece=50_000)
    reading = device.resources.load(FOLDER, "m.bin")
    chunks = reading.chunks(1000)
    start = next(chunks)
    device.publish(b"2" * 600_000, piece=50_000)
    assert start + b"".join(chunks) == b"1" * 600_000
    assert device.load() == b"2" * 600_000
    reading.close()


def test_uploads_of_one_name_are_serialised(device: Device) -> None:
    errors: list[BaseException] = []

    def publish(letter: bytes) -> None:
        try:
            device.publish(letter * 40_000)
        except BaseException as err:  # noqa: BLE001 - shown by the assertion
            errors.append(err)

    threads = [threading.Thread(target=publish, args=(bytes([65 + n]),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set(device.load())) == 1
    assert device.side.downloads == 0
    assert Device(device.root / "other", device.side).load() == device.load()


def test_loaded_resource_of_an_impossible_length(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(bytes(17))
    for small in (b"", b"x", bytes(14)):
        with pytest.raises(IntegrityError):
            LoadedResource(os.open(path, os.O_RDONLY), small, security.resource_key())
