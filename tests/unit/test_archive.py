"""The reader of image archives: every byte proved, all layouts accepted, everything else refused."""

import gzip
import hashlib
import io
import json
import random
import subprocess
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azaion_devkit.image_sets import (
    END_OF_TAR,
    SyntheticImage,
    gzipped,
    header,
    make_images,
    oci_layout,
    older_layout,
)
from azaion_devkit.readers import BytesReader, SparseReader, cbc_damage
from azaion_loader.archive import ArchiveIndex, looks_like_archive, open_archive, prove_layers
from azaion_loader.errors import ArchiveError, ArchiveIncomplete, ArchiveInvalid, Interrupted

VECTORS = Path(__file__).parent.parent / "vectors" / "archives"
LIMIT = 1 << 40
TAGS = ("azaion/one:test", "azaion/two:test")


def images(**options: int) -> list[SyntheticImage]:
    return make_images(TAGS, shared_bytes=options.get("shared", 1500), unique_bytes=options.get("unique", 611))


LAYOUTS: dict[str, Callable[[], bytes]] = {
    "older": lambda: b"".join(older_layout(images())),
    "oci": lambda: b"".join(oci_layout(images())),
    "packed": lambda: b"".join(oci_layout(images(), packed=True)),
}


def go_on() -> None:
    """Never cancels."""


def prove(data: bytes, threads: int = 1, max_bytes: int = LIMIT) -> ArchiveIndex:
    reader = BytesReader(data)
    index = open_archive(reader, max_bytes, go_on)
    prove_layers(reader, index, [layer for i in index.images for layer in i.layers], lambda _: None, go_on, threads)
    return index


def refused(data: bytes) -> bool:
    try:
        prove(data)
    except ArchiveError:
        return True
    return False


def files(data: bytes) -> dict[str, bytes]:
    """Return the members of a tar that are files."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}  # type: ignore[union-attr]


def tar_of(members: dict[str, bytes]) -> bytes:
    return b"".join(header(n, len(c)) + c + bytes(-len(c) % 512) for n, c in members.items()) + END_OF_TAR


def dumps(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("whole", ["plain", "gzipped"])
def test_layouts_read_the_same_images(layout: str, whole: str) -> None:
    data = LAYOUTS[layout]()
    packed = b"".join(gzipped([data])) if whole == "gzipped" else data
    index = prove(packed, threads=2)
    assert (index.gzipped, index.tar_bytes) == (whole == "gzipped", len(data))
    assert index.layout == ("docker" if layout == "older" else "oci")
    for found, made in zip(index.images, images(), strict=True):
        assert (found.tags, found.config_digest, found.config) == ((made.tag,), made.config_digest, made.config)
        assert (found.diff_ids, found.os, found.architecture) == (made.diff_ids, "linux", "amd64")
        assert tuple(layer.diff_id for layer in found.layers) == made.diff_ids
        for layer in found.layers:
            stored = data[layer.offset : layer.offset + layer.size]
            assert f"sha256:{hashlib.sha256(stored).hexdigest()}" == layer.blob_digest
            assert layer.gzipped == (layout == "packed")


@pytest.mark.parametrize("vector", sorted(VECTORS.glob("*.tar.gz")), ids=lambda path: path.name)
def test_archives_of_real_engines_are_read(vector: Path) -> None:
    data = gzip.decompress(vector.read_bytes())
    index = prove(data, threads=2)
    assert index.images == prove(gzip.compress(data)).images
    assert [image.config_digest[7:19] for image in index.images] == ["18f3c6ebbbef", "7bde8d1ab13c"]
    assert [len(image.layers) for image in index.images] == [2, 4]


@pytest.mark.exhaustive
@pytest.mark.parametrize("vector", sorted(VECTORS.glob("*.tar.gz")), ids=lambda path: path.name)
def test_damage_in_every_block_of_a_real_archive_is_refused(vector: Path) -> None:
    data = gzip.decompress(vector.read_bytes())
    randomness = random.Random(vector.name)
    passed = [
        block
        for block in range(-16, len(data), 16)
        if not refused(cbc_damage(data, block + randomness.randrange(16), randomness.randrange(8), randomness))
    ]
    assert passed == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flip_of_every_byte_is_refused(layout: str, step: int) -> None:
    data = LAYOUTS[layout]()
    randomness = random.Random(layout)
    passed = [
        offset
        for offset in range(-16, len(data), step)
        if not refused(cbc_damage(data, offset, randomness.randrange(8), randomness))
    ]
    assert passed == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_single_flipped_bit_of_plaintext_in_headers_and_layers_is_refused(layout: str, step: int) -> None:
    """Harder than CBC allows: nothing is garbled. Descriptions without a digest are left to their form."""
    data = LAYOUTS[layout]()
    loose = bytearray(len(data))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            if member.name.endswith(("json", "repositories", "oci-layout")) and "blobs" not in member.name:
                loose[member.offset_data : member.offset_data + member.size] = b"1" * member.size
    for offset in range(0, len(data), step):
        if not loose[offset]:
            damaged = bytearray(data)
            damaged[offset] ^= 1 << (offset % 8)
            assert refused(bytes(damaged)), offset


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuts_and_additions_are_refused(layout: str) -> None:
    data = LAYOUTS[layout]()
    assert all(refused(data[:length]) for length in range(0, len(data), 37))
    assert all(refused(data[:length]) for length in range(0, len(data), 512))
    for addition in (b"x", b"\0", b"x" * 512, bytes(100), bytes(512) + b"x" * 512, data):
        assert refused(data + addition)
    assert not refused(data + bytes(10240))


def test_swapped_layers_are_refused() -> None:
    members = files(LAYOUTS["oci"]())
    blobs = sorted((n for n in members if n.startswith("blobs/")), key=lambda n: -len(members[n]))
    members[blobs[1]], members[blobs[2]] = members[blobs[2]], members[blobs[1]]
    with pytest.raises(ArchiveInvalid, match="damaged"):
        prove(tar_of(members))


def test_a_missing_layer_or_config_or_manifest_is_incomplete() -> None:
    members = files(LAYOUTS["oci"]())
    manifest = json.loads(members["manifest.json"])
    for name in (manifest[0]["Layers"][0], manifest[1]["Config"], "manifest.json"):
        with pytest.raises(ArchiveIncomplete):
            prove(tar_of({n: c for n, c in members.items() if n != name}))
    with pytest.raises(ArchiveIncomplete):
        prove(tar_of(members | {"manifest.json": b"[]"}))


def test_a_manifest_may_stand_first_or_last() -> None:
    members = files(LAYOUTS["oci"]())
    first = {"manifest.json": members["manifest.json"]} | members
    last = {n: c for n, c in members.items() if n != "manifest.json"} | first
    assert [i.config_digest for i in prove(tar_of(first)).images] == [
        i.config_digest for i in prove(tar_of(last)).images
    ]


@pytest.mark.parametrize(
    "name",
    [
        "etc/passwd",
        "/manifest.json",
        "../manifest.json",
        "blobs/../x",
        "a//b",
        "./manifest.json",
        "x" * 64 + "/layer.tar",
    ],
)
def test_other_members_are_refused_by_name(name: str) -> None:
    with pytest.raises(ArchiveInvalid) as caught:
        prove(tar_of(files(LAYOUTS["oci"]()) | {name: b"x"}))
    assert name[:60] in caught.value.message


def test_an_unknown_blob_that_hashes_to_its_name_is_known() -> None:
    content = b'{"_type":"https://in-toto.io/Statement/v0.1"}'
    name = f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    assert len(prove(tar_of(files(LAYOUTS["oci"]()) | {name: content})).images) == 2
    with pytest.raises(ArchiveInvalid, match="don't fit its name"):
        prove(tar_of(files(LAYOUTS["oci"]()) | {name: content + b" "}))


def test_attestations_and_manifests_of_other_platforms_are_accepted() -> None:
    members = files(LAYOUTS["oci"]())
    statement = b'{"_type":"https://in-toto.io/Statement/v0.1"}'
    empty = b"{}"
    blobs = {f"sha256:{hashlib.sha256(c).hexdigest()}": c for c in (statement, empty)}

    def descriptor(kind: str, content: bytes) -> dict[str, object]:
        return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}

    manifest = dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.empty.v1+json", empty),
            "layers": [descriptor("application/vnd.in-toto+json", statement)],
        }
    )
    blobs[f"sha256:{hashlib.sha256(manifest).hexdigest()}"] = manifest
    attestation = descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    absent = {"mediaType": attestation["mediaType"], "digest": "sha256:" + "0" * 64, "size": 7}
    inner = dumps({"schemaVersion": 2, "manifests": [attestation, absent]})
    blobs[f"sha256:{hashlib.sha256(inner).hexdigest()}"] = inner
    index = json.loads(members["index.json"])
    index["manifests"].append(descriptor("application/vnd.oci.image.index.v1+json", inner))
    members |= {f"blobs/sha256/{digest[7:]}": content for digest, content in blobs.items()}
    assert len(prove(tar_of(members | {"index.json": dumps(index)})).images) == 2
    index["manifests"][-1]["size"] += 1
    with pytest.raises(ArchiveInvalid, match="states"):
        prove(tar_of(members | {"index.json": dumps(index)}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", b"{}"),
        ("manifest.json", b'[{"Config": 1}]'),
        ("manifest.json", b"[" * 100_000),
        ("manifest.json", b"[" * 70 + b"]" * 70),
        ("manifest.json", b'{"a": NaN}'),
        ("manifest.json", b" " * (5 << 20)),
        ("manifest.json", b'[{"Config": "x.json", "Layers": []}]'),
        ("index.json", b'{"schemaVersion": 2, "schemaVersion": 2}'),
        ("index.json", b'{"schemaVersion": 1, "manifests": []}'),
        ("index.json", b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:xyz"}]}'),
        ("index.json", b'{"schemaVersion": 2, "manifests": 7}'),
        ("index.json", b"\xff"),
        ("oci-layout", b'{"imageLayoutVersion": "2"}'),
        ("repositories", b'{"a": {"b": "c"}}'),
        ("repositories", b'{"a": 1}'),
        ("0" * 64 + "/VERSION", b"2.0"),
        ("0" * 64 + "/json", b'{"id": "1"}'),
        ("0" * 64 + "/layer.tar", b"x"),
        ("0" * 64 + ".tar", b"x"),
        ("0" * 64 + ".json", b"{}"),
    ],
)
def test_bad_descriptions_are_refused(name: str, content: bytes) -> None:
    with pytest.raises(ArchiveInvalid):
        prove(tar_of(files(LAYOUTS["oci"]()) | {name: content}))


def rewritten_config(change: Callable[[dict[str, object]], None]) -> bytes:
    """Return an archive of one image whose config was changed, with the digest that it then has."""
    members = files(LAYOUTS["oci"]())
    entry = json.loads(members["manifest.json"])[0]
    config = json.loads(members[entry["Config"]])
    change(config)
    content = dumps(config)
    entry["Config"] = f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    kept = {name: members[name] for name in entry["Layers"]}
    return tar_of(kept | {entry["Config"]: content, "manifest.json": dumps([entry])})


def test_a_config_must_describe_its_layers_and_its_platform() -> None:
    assert prove(rewritten_config(lambda _: None)).layout == "docker"
    changes: list[Callable[[dict[str, object]], object]] = [
        lambda config: config.pop("os"),
        lambda config: config.pop("architecture"),
        lambda config: config.pop("rootfs"),
        lambda config: config.update(rootfs={"type": "layers", "diff_ids": []}),
        lambda config: config.update(rootfs={"type": "other", "diff_ids": config["rootfs"]["diff_ids"]}),  # type: ignore[index]
        lambda config: config.update(rootfs={"type": "layers", "diff_ids": ["sha256:0"] * 3}),
        lambda config: config.update(rootfs={"type": "layers", "diff_ids": ["sha256:" + "0" * 64] * 3}),
        lambda config: config.update(variant=5),
    ]
    for change in changes:
        with pytest.raises(ArchiveInvalid):
            prove(rewritten_config(lambda config, change=change: change(config) and None))  # type: ignore[misc]


def test_one_tag_for_two_images_is_refused() -> None:
    members = files(LAYOUTS["oci"]())
    entries = json.loads(members["manifest.json"])
    entries[1]["RepoTags"] = entries[0]["RepoTags"]
    with pytest.raises(ArchiveInvalid, match="two images"):
        prove(tar_of(members | {"manifest.json": dumps(entries)}))


def test_entries_of_one_image_are_joined() -> None:
    members = files(LAYOUTS["oci"]())
    entries = json.loads(members["manifest.json"])
    entries.append(entries[0] | {"RepoTags": ["azaion/more:test"]})
    found = prove(tar_of(members | {"manifest.json": dumps(entries)})).images
    assert [image.tags for image in found] == [(TAGS[0], "azaion/more:test"), (TAGS[1],)]


def test_links_must_lead_to_a_layer() -> None:
    data = LAYOUTS["older"]()
    end = len(data) - len(END_OF_TAR)
    name = "f" * 64 + "/layer.tar"
    for kind, target in (
        (tarfile.SYMTYPE, "../manifest.json"),
        (tarfile.SYMTYPE, "../../etc/passwd"),
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../" + "e" * 64 + "/layer.tar"),
        (tarfile.LNKTYPE, "e" * 64 + "/layer.tar"),
        (tarfile.SYMTYPE, "layer.tar"),
    ):
        assert refused(data[:end] + header(name, 0, kind, target) + END_OF_TAR), target
    original = json.loads(files(data)["manifest.json"])[0]["Layers"][0]
    for kind, target in ((tarfile.SYMTYPE, f"../{original}"), (tarfile.LNKTYPE, original)):
        assert not refused(data[:end] + header(name, 0, kind, target) + END_OF_TAR)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_python_s_tarfile_is_read(form: int) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for name, content in files(LAYOUTS["oci"]()).items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(content), 1.5 if form == tarfile.PAX_FORMAT else 1, "root"  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(content))
    assert len(prove(target.getvalue()).images) == 2


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax"])
def test_every_form_of_gnu_tar_is_read(form: str, tmp_path: Path) -> None:
    members = files(LAYOUTS["older"]())
    with tarfile.open(fileobj=io.BytesIO(LAYOUTS["older"]())) as tar:
        # Early releases of Python 3.11, Debian 12's among them, have no filters.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(tmp_path)  # noqa: S202 - made by this test
    names = sorted(path.name for path in tmp_path.iterdir())
    made = subprocess.run(
        ["tar", f"--format={form}", "-C", tmp_path, "-cf", "-", *names], capture_output=True, check=True
    )
    assert len(prove(made.stdout).images) == 2
    assert len(members) > 5


def sparse_archive(size: int, form: int) -> SparseReader:
    """Return an archive of one image whose only layer has `size` bytes, mostly zeros."""
    diff_id = "ab" * 32
    config = dumps(
        {"os": "linux", "architecture": "arm64", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}}
    )
    name = hashlib.sha256(config).hexdigest()
    manifest = dumps([{"Config": f"{name}.json", "RepoTags": ["a:b"], "Layers": [f"{diff_id}/layer.tar"]}])
    info = tarfile.TarInfo(f"{diff_id}/layer.tar")
    info.size = size
    rest = tar_of({f"{name}.json": config, "manifest.json": manifest})
    return SparseReader([info.tobuf(form), size + -size % 512, rest])


@pytest.mark.parametrize("size", [g * (1 << 30) + d for g in (2, 4, 8, 9) for d in (-1, 0, 1)])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_layers_around_the_powers_of_two_are_placed_right(size: int, form: int) -> None:
    reader = sparse_archive(size, form)
    index = open_archive(reader, LIMIT, go_on)
    (layer,) = index.images[0].layers
    assert (layer.size, index.tar_bytes) == (size, reader.size)
    assert reader.bytes_read < 20_000
    with pytest.raises(ArchiveInvalid, match="larger"):
        open_archive(reader, reader.size - 1, go_on)


def test_opening_reads_no_layers_and_proving_reads_each_once() -> None:
    made = images(shared=400_000, unique=100_000)
    reader = BytesReader(b"".join(older_layout(made)))
    index = open_archive(reader, LIMIT, go_on)
    assert reader.bytes_read < 40_000
    reader.bytes_read = 0
    layers = [layer for image in index.images for layer in image.layers]
    told: list[int] = []
    prove_layers(reader, index, layers, told.append, go_on, 2)
    distinct = {layer.offset: layer.size for layer in layers}
    assert sum(told) == sum(distinct.values()) == reader.bytes_read
    assert len(distinct) == 4


def test_only_wanted_layers_are_proved() -> None:
    data = bytearray(LAYOUTS["oci"]())
    index = open_archive(BytesReader(bytes(data)), LIMIT, go_on)
    own = index.images[0].layers[1]
    data[own.offset + 600] ^= 1
    damaged = BytesReader(bytes(data))
    prove_layers(damaged, index, index.images[1].layers, lambda _: None, go_on, 1)
    for threads in (1, 2, 4):
        with pytest.raises(ArchiveInvalid, match=own.name):
            prove_layers(damaged, index, index.images[0].layers, lambda _: None, go_on, threads)


def test_a_packed_layer_is_proved_unpacked_and_bounded() -> None:
    data = LAYOUTS["packed"]()
    reader = BytesReader(data)
    index = open_archive(reader, len(data), go_on)
    with pytest.raises(ArchiveInvalid, match="more than is allowed"):
        prove_layers(
            reader, ArchiveIndex(index.images, 0, "oci", False, 100), index.images[0].layers, lambda _: None, go_on
        )
    members = files(data)
    entries = json.loads(members["manifest.json"])
    blob = entries[0]["Layers"][1]
    other = gzip.compress(b"something else")
    name = f"blobs/sha256/{hashlib.sha256(other).hexdigest()}"
    entries[0]["Layers"][1] = name
    with pytest.raises(ArchiveInvalid, match="don't fit its digest"):
        prove(tar_of({n: c for n, c in members.items() if n != blob} | {name: other, "manifest.json": dumps(entries)}))


def test_cancelling_stops_at_once_and_in_all_threads() -> None:
    data = b"".join(older_layout(images(shared=3_000_000, unique=2_000_000)))
    reader = BytesReader(data)
    index = open_archive(reader, LIMIT, go_on)
    lock = threading.Lock()
    calls = 0

    def cancel_third() -> None:
        nonlocal calls
        with lock:
            calls += 1
            if calls >= 3:
                raise Interrupted("stopping")

    before = set(threading.enumerate())
    for threads in (1, 2):
        calls = 0
        reader.bytes_read = 0
        with pytest.raises(Interrupted):
            prove_layers(reader, index, index.images[0].layers, lambda _: None, cancel_third, threads)
        assert reader.bytes_read <= 3 << 20
    for packed in (data, gzip.compress(data, 1)):
        calls = 0
        with pytest.raises(Interrupted):
            open_archive(BytesReader(packed), LIMIT, cancel_third)
    assert set(threading.enumerate()) <= before


def test_looks_like_archive() -> None:
    assert looks_like_archive(LAYOUTS["older"]()[:512])
    assert looks_like_archive(gzip.compress(b"x"))
    assert not looks_like_archive(b"")
    assert not looks_like_archive(random.Random(1).randbytes(512))


@given(st.binary(max_size=3000))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    assert refused(data)
    assert refused(b"\x1f\x8b\x08" + data)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_random_edits_never_change_what_is_read(data: st.DataObject) -> None:
    """Whatever is done to an archive, it is refused, or read as the same layers and configs."""
    original = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]()
    edited = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(original) // 512)) * 512 + data.draw(
            st.sampled_from([0, 100, 124, 156, 345])
        )
        edited[start : start + data.draw(st.integers(0, 512))] = data.draw(st.binary(max_size=512))
    try:
        index = prove(bytes(edited))
    except ArchiveError:
        return
    expected = {image.config_digest: image.diff_ids for image in images()}
    assert {image.config_digest: image.diff_ids for image in index.images}.items() <= expected.items()
