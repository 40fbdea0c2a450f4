"""Downloads and uploads through a proxy that cuts, drips, stalls, lies and refuses; and with a kill in the middle."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from azaion_devkit.fault_proxy import FaultProxy, Rule
from azaion_devkit.object_store import ObjectStore
from azaion_loader.cdn_manager import CdnManager, KeysRefused, ObjectInfo, ObjectMissing, TransferLimits, parse_cdn_yaml
from azaion_loader.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable

pytestmark = pytest.mark.store
MIB = 1 << 20
SIZE = 6 * MIB + 12_345
LIMITS = TransferLimits(stall_timeout_s=1, part_bytes=MIB, connections=3)
OBJECT = r"/models/a\.big"


def payload(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(f"payload {seed}".encode()).digest(size)


DATA = payload(SIZE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    server = ObjectStore(tmp_path_factory.mktemp("store"))
    (server.make_bucket("models") / "a.big").write_bytes(DATA)
    with server:
        yield server


@pytest.fixture
def proxy(store: ObjectStore) -> Iterator[FaultProxy]:
    with FaultProxy(store.url) as made:
        yield made


@pytest.fixture
def manager(store: ObjectStore, proxy: FaultProxy) -> Iterator[CdnManager]:
    made = CdnManager(
        parse_cdn_yaml(store.cdn_yaml(proxy.url)), connect_timeout_s=2, request_timeout_s=2, limits=LIMITS
    )
    yield made
    made.close()


def fetch(manager: CdnManager, tmp_path: Path, info: ObjectInfo | None = None) -> bytes:
    manager.download("models", "a.big", tmp_path / "t", info=info)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    return (tmp_path / "t").read_bytes()


SURVIVED = {
    "cut": Rule("GET", OBJECT, times=10, cut_after_bytes=300_000),
    "cut before the head": Rule("GET", OBJECT, times=2, cut_after_bytes=-1),
    "cut after the head": Rule("GET", OBJECT, times=2, cut_after_bytes=0),
    "503": Rule("GET", OBJECT, times=2, answer_status=503),
    "503 to HEAD": Rule("HEAD", OBJECT, times=2, answer_status=503),
    "416 once": Rule("GET", OBJECT, answer_status=416),
    "412 once": Rule("GET", OBJECT, answer_status=412),
    "wrong ETag once": Rule("GET", OBJECT, set_headers={"ETag": '"0123456789abcdef0123456789abcdef"'}),
    "wrong range once": Rule("GET", OBJECT, set_headers={"Content-Range": f"bytes 1-{MIB}/{SIZE}"}),
    "wrong total once": Rule("GET", OBJECT, set_headers={"Content-Range": f"bytes 0-{MIB - 1}/{SIZE + 1}"}),
    "short length once": Rule("GET", OBJECT, set_headers={"Content-Length": "1000"}),
    "long length once": Rule("GET", OBJECT, set_headers={"Content-Length": str(2 * MIB)}),
    "no length": Rule("GET", OBJECT, times=2, set_headers={"Content-Length": ""}, cut_after_bytes=2000),
    "stall": Rule("GET", OBJECT, times=2, stall_after_bytes=200_000),
    "stall before the body": Rule("GET", OBJECT, times=1, stall_after_bytes=0),
    "drip": Rule("GET", OBJECT, times=1, drip_bytes=1, drip_pause_s=0.05),
}


@pytest.mark.parametrize("fault", SURVIVED)
def test_survives(manager: CdnManager, proxy: FaultProxy, tmp_path: Path, fault: str) -> None:
    rule = SURVIVED[fault]
    proxy.add(Rule(**{name: getattr(rule, name) for name in Rule.__slots__}))
    assert fetch(manager, tmp_path) == DATA
    # Cut answers are continued, not repeated; what a refused answer had on its way may be lost.
    assert proxy.body_bytes <= SIZE * 1.01 + 3 * MIB


REFUSED = {
    "always cut": (Rule(cut_after_bytes=0), UpstreamUnavailable),
    "always 503": (Rule(answer_status=503), UpstreamError),
    "always 400": (Rule(answer_status=400), UpstreamError),
    "always 416": (Rule(answer_status=416), UpstreamError),
    "always 412": (Rule(answer_status=412), UpstreamError),
    "nonsense": (Rule(answer_status=200, answer_body=b"<html>hello</html>"), UpstreamError),
    "always a wrong ETag": (Rule(set_headers={"ETag": '"x"'}), UpstreamError),
    "no ETag": (Rule(set_headers={"ETag": ""}), UpstreamError),
    "always a wrong range": (Rule(set_headers={"Content-Range": f"bytes 1-{MIB}/{SIZE}"}), UpstreamError),
    "always a long length": (Rule(set_headers={"Content-Length": str(2 * MIB)}), UpstreamError),
    "silence": (Rule(stall_after_bytes=0), UpstreamTimeout),
    "drip for ever": (Rule(drip_bytes=1, drip_pause_s=0.02), UpstreamTimeout),
    "keys refused": (Rule(answer_status=403), KeysRefused),
    "gone": (Rule(answer_status=404), ObjectMissing),
    "redirect to plain HTTP": (Rule(answer_status=307, answer_headers={"Location": "{url}/trap"}), UpstreamError),
    "redirect to a region": (
        Rule(answer_status=301, answer_headers={"x-amz-bucket-region": "eu-west-1"}),
        UpstreamError,
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.timeout(40)
def test_refuses(manager: CdnManager, proxy: FaultProxy, tmp_path: Path, fault: str) -> None:
    rule, expected = REFUSED[fault]
    rule = Rule(**{name: getattr(rule, name) for name in Rule.__slots__})
    rule.method, rule.times = "GET", 1000
    rule.answer_headers = {name: value.format(url=proxy.url) for name, value in rule.answer_headers.items()}
    info = manager.head("models", "a.big")
    proxy.add(rule)
    began_s = time.monotonic()
    with pytest.raises(expected) as caught:
        manager.download("models", "a.big", tmp_path / "t", info=info)
    assert type(caught.value).code == expected.code
    assert time.monotonic() - began_s < 15
    assert not (tmp_path / "t").exists()
    assert proxy.count(path="/trap") == 0
    proxy.clear()
    assert fetch(manager, tmp_path, info) == DATA


@pytest.mark.parametrize("times", [1, 1000])
def test_a_store_that_ignores_ranges_is_read_in_one_piece(
    manager: CdnManager, proxy: FaultProxy, store: ObjectStore, tmp_path: Path, times: int
) -> None:
    proxy.add(Rule("GET", OBJECT, times=times, whole_file=store.root / "models" / "a.big"))
    assert fetch(manager, tmp_path) == DATA


def test_a_store_without_ranges_that_cuts_early_is_given_up(
    manager: CdnManager, proxy: FaultProxy, store: ObjectStore, tmp_path: Path
) -> None:
    whole = store.root / "models" / "a.big"
    proxy.add(Rule("GET", OBJECT, times=1000, whole_file=whole, cut_after_bytes=100_000))
    with pytest.raises(UpstreamUnavailable):
        manager.download("models", "a.big", tmp_path / "t")
    assert proxy.count("GET") < 20


def test_a_changed_object_starts_clean(
    manager: CdnManager, proxy: FaultProxy, store: ObjectStore, tmp_path: Path
) -> None:
    old, new = payload(8 * MIB, 1), payload(8 * MIB, 2)
    path = store.root / "models" / "changing.big"
    path.write_bytes(old)
    store.refresh()
    newer = tmp_path / "newer"
    newer.write_bytes(new)
    resets: list[int] = []

    class Sink:
        def reset(self) -> None:
            resets.append(1)
            self.seen = b""

        def update(self, chunk: memoryview) -> None:
            self.seen += chunk

        def prove(self, info: ObjectInfo) -> None:  # noqa: ARG002 - the protocol's signature
            assert self.seen == new

    changed: list[int] = []

    def change(done: int) -> None:
        if done >= MIB and not changed:
            changed.append(done)
            # By the store's own way, so that bytes and ETag change at once.
            manager.upload("models", "changing.big", newer, {})

    # Slowly, so that ranges are left to be asked for when the upload is done.
    proxy.add(Rule("GET", "changing", times=8, drip_bytes=60_000, drip_pause_s=0.05))
    manager.download("models", "changing.big", tmp_path / "t", sink=Sink(), progress=change)
    assert (tmp_path / "t").read_bytes() == new
    assert changed
    assert len(resets) > 1


def test_parts_of_an_older_version_are_not_used(
    manager: CdnManager, proxy: FaultProxy, store: ObjectStore, tmp_path: Path
) -> None:
    path = store.root / "models" / "older.big"
    path.write_bytes(payload(4 * MIB, 1))
    store.refresh()
    proxy.add(Rule("GET", "older", times=1000, cut_after_bytes=-1, skip=2))
    with pytest.raises(UpstreamUnavailable):
        manager.download("models", "older.big", tmp_path / "t")
    assert (tmp_path / "t.part").stat().st_size > 0
    path.write_bytes(payload(4 * MIB, 2))
    store.refresh()
    proxy.clear()
    manager.download("models", "older.big", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == payload(4 * MIB, 2)


def test_if_match_is_sent(manager: CdnManager, proxy: FaultProxy, tmp_path: Path) -> None:
    info = manager.head("models", "a.big")
    fetch(manager, tmp_path)
    assert {request.headers.get("if-match") for request in proxy.requests if request.method == "GET"} == {
        f'"{info.etag}"'
    }


def test_uploads_survive_and_fail_cleanly(
    manager: CdnManager, proxy: FaultProxy, store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "s").write_bytes(DATA)
    proxy.add(
        Rule("PUT", times=1, answer_status=503),
        Rule("PUT", times=1, cut_request_after_bytes=200_000),
        Rule("POST", times=1, answer_status=503),
    )
    manager.upload("models", "up.big", tmp_path / "s", {"azaion-format": "1"})
    assert (store.root / "models" / "up.big").read_bytes() == DATA
    assert manager.head("models", "up.big").metadata["azaion-format"] == "1"
    proxy.clear()
    proxy.add(Rule("PUT", times=1000, skip=3, answer_status=503))
    with pytest.raises(UpstreamError):
        manager.upload("models", "fails.big", tmp_path / "s", {})
    assert proxy.count("DELETE") == 1
    assert not (store.root / "models" / "fails.big").exists()


PROGRAM = """
import sys
from pathlib import Path
from azaion_loader.cdn_manager import *
manager = CdnManager(parse_cdn_yaml(Path(sys.argv[1]).read_bytes()), limits=TransferLimits(part_bytes=int(sys.argv[4])))
manager.download("models", sys.argv[2], Path(sys.argv[3]))
"""


def kill_often(store: ObjectStore, key: str, data_sha256: str, tmp_path: Path, *, part_bytes: int, kills: int) -> None:
    """Download in a process that is killed at `kills` random places, and compare bytes and traffic."""
    size = (store.root / "models" / key).stat().st_size
    target = tmp_path / "t"
    cuts = sorted(random.Random(7).sample(range(size // 50, size - size // 50), kills))
    with FaultProxy(store.url) as proxy:
        (tmp_path / "cdn.yaml").write_bytes(store.cdn_yaml(proxy.url))
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "cdn.yaml"), key, str(target), str(part_bytes)]
        # Counted from the start of each run, so that even without any waste the last cut comes before the end.
        runs = [*(cut - earlier for earlier, cut in zip([0, *cuts], cuts, strict=False)), None]
        for cut in runs:
            before = proxy.body_bytes
            process = subprocess.Popen(command, start_new_session=True)
            while process.poll() is None:
                if cut is not None and proxy.body_bytes - before >= cut:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
                time.sleep(0.002)
            assert process.wait(120) == (0 if cut is None else -signal.SIGKILL)
        assert proxy.body_bytes <= 1.01 * size + kills * 4 * part_bytes
    assert hashlib.sha256(target.read_bytes()).hexdigest() == data_sha256
    assert not (tmp_path / "t.part").exists()
    assert not (tmp_path / "t.part.json").exists()


def test_a_killed_download_goes_on(store: ObjectStore, tmp_path: Path) -> None:
    data = payload(48 * MIB, 5)
    (store.root / "models" / "killed.big").write_bytes(data)
    store.refresh()
    kill_often(store, "killed.big", hashlib.sha256(data).hexdigest(), tmp_path, part_bytes=MIB, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_gigabyte_cut_at_twenty_places(store: ObjectStore, tmp_path: Path) -> None:
    sha256 = hashlib.sha256()
    with (store.root / "models" / "huge.big").open("wb") as file:
        for seed in range(64):
            piece = payload(16 * MIB, seed)
            sha256.update(piece)
            file.write(piece)
    store.refresh()
    kill_often(store, "huge.big", sha256.hexdigest(), tmp_path, part_bytes=2 * MIB, kills=20)
    # Kept folders of tests must not hold gigabytes.
    (store.root / "models" / "huge.big").unlink()
    (tmp_path / "t").unlink()
