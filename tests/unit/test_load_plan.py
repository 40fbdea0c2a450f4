"""What the engine is given: byte-exact tars with our own manifest."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azaion_devkit.image_sets import make_images, oci_layout, older_layout
from azaion_devkit.readers import BytesReader
from azaion_loader.archive import open_archive
from azaion_loader.archive_model import ArchiveImage, ArchiveIndex, Layer
from azaion_loader.errors import ArchiveInvalid, Interrupted
from azaion_loader.load_plan import (
    LoadStream,
    compose_docker_tar,
    compose_oci_tar,
    full_reference,
    held_layers,
)

TAGS = ("azaion/one:test", "azaion/two:test")
LIMIT = 1 << 40


def go_on() -> None:
    """Never cancels."""


def archives() -> dict[str, bytes]:
    made = make_images(TAGS, shared_bytes=70_000, unique_bytes=3001, variant="v8")
    older = b"".join(older_layout(made))
    packed = b"".join(oci_layout(made, packed=True))
    return {
        "older": older,
        "oci": b"".join(oci_layout(made)),
        "packed": packed,
        "older gzipped": gzip.compress(older, 1),
        "packed gzipped": gzip.compress(packed, 1),
    }


ARCHIVES = archives()


def opened(kind: str) -> tuple[BytesReader, ArchiveIndex, list[tuple[ArchiveImage, str]]]:
    reader = BytesReader(ARCHIVES[kind])
    index = open_archive(reader, LIMIT, go_on)
    return reader, index, [(image, f"staged:{number}") for number, image in enumerate(index.images)]


def whole(stream: LoadStream, reader: BytesReader, chunk_bytes: int = 4096) -> bytes:
    data = bytearray()
    for chunk in stream.chunks(reader, chunk_bytes):
        assert 0 < len(chunk) <= chunk_bytes
        data += chunk
    assert len(data) == stream.total_bytes
    return bytes(data)


def files(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_docker_tar_holds_every_image_under_its_new_tag(kind: str) -> None:
    reader, index, pairs = opened(kind)
    stream = compose_docker_tar(index, pairs)
    members = files(whole(stream, reader))
    assert stream.tags == ("staged:0", "staged:1")
    for entry, (image, tag) in zip(json.loads(members["manifest.json"]), pairs, strict=True):
        assert entry["RepoTags"] == [tag]
        assert sha256(members[entry["Config"]]) == image.config_digest
        for path, diff_id in zip(entry["Layers"], image.diff_ids, strict=True):
            content = members[path]
            assert sha256(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content) == diff_id
    assert len(members) == 1 + 2 + 4
    if not index.gzipped:
        # Our own stream is itself a strict archive, wherever layers are not packed.
        assert "packed" in kind or open_archive(BytesReader(whole(stream, reader)), LIMIT, go_on).layout == "docker"


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_oci_tar_is_a_strict_layout(kind: str) -> None:
    reader, index, pairs = opened(kind)
    members = files(whole(compose_oci_tar(index, pairs), reader))
    for name, content in members.items():
        if name.startswith("blobs/"):
            assert sha256(content) == f"sha256:{name.rpartition('/')[2]}"
    assert json.loads(members["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    for entry, (image, tag) in zip(json.loads(members["index.json"])["manifests"], pairs, strict=True):
        assert entry["annotations"]["io.containerd.image.name"] == f"docker.io/library/{tag}"
        assert entry["platform"] == {"architecture": "amd64", "os": "linux", "variant": "v8"}
        manifest = json.loads(members[f"blobs/sha256/{entry['digest'][7:]}"])
        assert manifest["config"]["digest"] == image.config_digest
        for layer, found in zip(image.layers, manifest["layers"], strict=True):
            assert (found["digest"], found["size"]) == (layer.blob_digest, layer.size)
            assert found["mediaType"].endswith("gzip") == layer.gzipped == ("packed" in kind)
            assert len(members[f"blobs/sha256/{layer.blob_digest[7:]}"]) == layer.size


@pytest.mark.parametrize("compose", [compose_docker_tar, compose_oci_tar])
@pytest.mark.parametrize("kind", ARCHIVES)
def test_left_out_layers_are_named_but_not_sent(kind: str, compose: object) -> None:
    reader, index, pairs = opened(kind)
    own = pairs[1][0].layers[1]
    stream = compose(index, pairs[1:], {own.diff_id})  # type: ignore[operator]
    assert stream.layers == (own,)
    assert stream.total_bytes < own.size + 16_000
    data = whole(stream, reader)
    assert all(diff_id[7:].encode() in data for diff_id in pairs[1][0].diff_ids)
    assert not any(layer.blob_digest[7:] in name for name in files(data) for layer in pairs[1][0].layers[::2])
    assert compose(index, pairs[1:], set()).layers == ()  # type: ignore[operator]


def test_one_image_may_get_two_tags() -> None:
    reader, index, pairs = opened("oci")
    image = pairs[0][0]
    members = files(whole(compose_docker_tar(index, [(image, "a:1"), (image, "b:2")]), reader))
    assert [entry["RepoTags"] for entry in json.loads(members["manifest.json"])] == [["a:1", "b:2"]]
    members = files(whole(compose_oci_tar(index, [(image, "a:1"), (image, "b:2")]), reader))
    assert len(json.loads(members["index.json"])["manifests"]) == 2


@given(st.integers(1, 5000))
@settings(max_examples=20, deadline=None)
def test_the_chunk_size_changes_nothing(chunk_bytes: int) -> None:
    for kind in ("older", "packed gzipped"):
        reader, index, pairs = opened(kind)
        stream = compose_docker_tar(index, pairs)
        assert whole(stream, reader, chunk_bytes) == whole(stream, reader, 1 << 20)


def test_streaming_can_be_cancelled_and_notices_a_shorter_archive() -> None:
    for kind in ("older", "older gzipped"):
        reader, index, pairs = opened(kind)

        def stop() -> None:
            raise Interrupted("stopping")

        with pytest.raises(Interrupted):
            list(compose_docker_tar(index, pairs).chunks(reader, 4096, stop))
        with pytest.raises(ArchiveInvalid):
            list(compose_docker_tar(index, pairs).chunks(BytesReader(reader.data[:20_000]), 4096, go_on))


def test_a_layer_of_more_than_8_gib_is_announced_right() -> None:
    size = (1 << 33) + 7
    layer = Layer("x", 512, size, "sha256:" + "a" * 64, "sha256:" + "a" * 64)
    image = ArchiveImage(("a:b",), "sha256:" + "b" * 64, b"{}", (layer.diff_id,), (layer,), "linux", "arm64", "", "")
    index = ArchiveIndex((image,), size + 2048, "docker", False, LIMIT)
    for compose in (compose_docker_tar, compose_oci_tar):
        stream = compose(index, [(image, "a:b")])
        literals = [segment for segment in stream.segments if isinstance(segment, bytes)]
        assert tarfile.TarInfo.frombuf(literals[0][-512:], "utf-8", "strict").size == size
        assert stream.total_bytes == size + sum(map(len, literals))
        assert stream.total_bytes % 512 == 0


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("a:1", "docker.io/library/a:1"),
        ("azaion/a:1", "docker.io/azaion/a:1"),
        ("azaion/a", "docker.io/azaion/a:latest"),
        ("localhost/a:1", "localhost/a:1"),
        ("host:5000/a", "host:5000/a:latest"),
        ("ghcr.io/x/a:1", "ghcr.io/x/a:1"),
    ],
)
def test_full_references(tag: str, expected: str) -> None:
    assert full_reference(tag) == expected


CHAIN = st.lists(st.sampled_from("abc"), max_size=5)


@given(CHAIN, st.lists(CHAIN, max_size=5))
def test_held_layers_is_the_longest_shared_prefix(diff_ids: Sequence[str], chains: Sequence[Sequence[str]]) -> None:
    held = held_layers(diff_ids, chains)
    assert any(list(chain[:held]) == list(diff_ids[:held]) for chain in [[], *chains])
    assert not any(list(chain[: held + 1]) == list(diff_ids[: held + 1]) for chain in chains if held < len(diff_ids))


def test_held_layers_needs_the_same_base() -> None:
    assert held_layers(["a", "b", "c"], [["b", "c"], ["a", "b", "x"], []]) == 2
    assert held_layers(["a"], []) == 0
    assert held_layers([], [["a"]]) == 0
