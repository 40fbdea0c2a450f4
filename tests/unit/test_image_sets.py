"""The devkit's synthetic images: the same for the same seed, different at every offset, streamed."""

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
import zlib

from azaion_devkit.image_sets import gzipped, make_images, oci_layout, older_layout

TAGS = ("azaion/one:t", "azaion/two:t")


def test_the_layout_is_that_of_its_digests() -> None:
    made = make_images(TAGS, shared_bytes=5000, unique_bytes=70_001)
    for image in made:
        config = json.loads(image.config)
        assert tuple(config["rootfs"]["diff_ids"]) == image.diff_ids
        for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
            data = b"".join(layer.chunks())
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == diff_id
            assert len(data) == layer.tar_bytes
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                assert [member.size for member in tar] == [layer.size]
    assert made[0].diff_ids[::2] == made[1].diff_ids[::2]
    assert made[0].diff_ids[1] != made[1].diff_ids[1]


def test_the_older_layout_shares_by_directory_and_by_link() -> None:
    made = make_images(TAGS, shared_bytes=5000, unique_bytes=100)
    with tarfile.open(fileobj=io.BytesIO(b"".join(older_layout(made)))) as tar:
        kinds = [member.type for member in tar if member.name.endswith("layer.tar")]
    assert sorted(kinds) == [tarfile.REGTYPE] * 4 + [tarfile.SYMTYPE]


def test_sets_are_reproducible_and_one_image_can_change() -> None:
    first = make_images(TAGS, shared_bytes=100, unique_bytes=100)
    assert first == make_images(TAGS, shared_bytes=100, unique_bytes=100)
    second = make_images(TAGS, shared_bytes=100, unique_bytes=100, versions={TAGS[1]: 2})
    assert first[0] == second[0]
    assert first[1].diff_ids[0] == second[1].diff_ids[0]
    assert first[1].config_digest != second[1].config_digest
    other = make_images(TAGS, shared_bytes=100, unique_bytes=100, seed="other", architecture="arm64", variant="v8")
    assert not set(other[0].diff_ids) & set(first[0].diff_ids)
    assert (json.loads(other[0].config)["architecture"], json.loads(other[0].config)["variant"]) == ("arm64", "v8")


def test_payloads_are_incompressible_and_carry_the_canary() -> None:
    (image,) = make_images(TAGS[:1], shared_bytes=200_000, unique_bytes=1000, canary=b"CANARY-1")
    data = b"".join(image.layers[0].chunks())
    assert len(zlib.compress(data)) > 195_000
    assert data.count(b"CANARY-1") == 4


def test_gzipping_is_a_stream() -> None:
    made = make_images(TAGS, shared_bytes=5000, unique_bytes=100)
    data = b"".join(older_layout(made))
    assert gzip.decompress(b"".join(gzipped(older_layout(made)))) == data


def test_memory_stays_small() -> None:
    tracemalloc.start()
    try:
        made = make_images(TAGS, shared_bytes=12 << 20, unique_bytes=4 << 20)
        total = sum(len(chunk) for stream in (older_layout(made), oci_layout(made)) for chunk in stream)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 40 << 20
    assert peak < 8 << 20
