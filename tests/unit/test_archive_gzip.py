"""Unpacking in sequence, within a bound, to the last byte."""

import gzip
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azaion_devkit.image_sets import gzipped, make_images, older_layout
from azaion_devkit.readers import BytesReader
from azaion_loader.archive import open_archive
from azaion_loader.archive_gzip import ForwardReader, GzipSource, Unpacker
from azaion_loader.errors import ArchiveError, ArchiveInvalid

LIMIT = 1 << 30


def go_on() -> None:
    """Never cancels."""


def archive() -> bytes:
    return b"".join(older_layout(make_images(("a/b:c",), shared_bytes=20_000, unique_bytes=3000)))


def unpack(data: bytes, max_bytes: int = LIMIT) -> bytes:
    source = GzipSource(BytesReader(data), max_bytes, go_on)
    parts = []
    while len(some := source.take_some(1000)):
        parts.append(bytes(some))
    assert source.position == sum(map(len, parts))
    return b"".join(parts)


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), st.integers(0, 9))
@settings(deadline=None)
def test_several_members_are_one_stream(parts: list[bytes], level: int) -> None:
    assert unpack(b"".join(gzip.compress(part, level) for part in parts)) == b"".join(parts)


@pytest.mark.parametrize("size", [0, 1, 255_999, 262_143, 262_144, 262_145, 1 << 20])
def test_sizes_around_the_pieces(size: int) -> None:
    for data in (random.Random(size).randbytes(size), bytes(size)):
        assert unpack(gzip.compress(data, 1), size) == data


def test_cuts_are_refused() -> None:
    packed = gzip.compress(random.Random(1).randbytes(3000))
    for length in range(len(packed)):
        with pytest.raises(ArchiveInvalid):
            unpack(packed[:length])


@pytest.mark.parametrize("addition", [b"x", bytes(1), bytes(512), b"\x1f", b"\x1f\x8b\x08\0"])
def test_bytes_after_the_stream_are_refused(addition: bytes) -> None:
    with pytest.raises(ArchiveInvalid):
        unpack(gzip.compress(b"hello") + addition)


def test_a_bomb_is_stopped_at_the_bound() -> None:
    bomb = b"".join(gzipped(bytes(1 << 20) for _ in range(64)))
    unpacked = 0
    unpacker = Unpacker(1 << 20, "The bomb")
    with pytest.raises(ArchiveInvalid, match="The bomb unpacks to more than is allowed"):  # noqa: PT012
        for piece in unpacker.unpack(bomb):
            unpacked += len(piece)
    assert unpacked <= 1 << 20
    with pytest.raises(ArchiveInvalid):
        open_archive(BytesReader(bomb), 1 << 20, go_on)
    assert unpack(gzip.compress(bytes(1000)), 1000) == bytes(1000)
    with pytest.raises(ArchiveInvalid):
        unpack(gzip.compress(bytes(1000)), 999)


def test_damage_of_a_gzipped_archive_is_refused_or_changes_nothing() -> None:
    """Gzip's time stamp and a few unused bits of deflate are covered by no checksum; they carry nothing, either."""
    data = archive()
    packed = gzip.compress(data, 6, mtime=0)
    passed = 0
    for offset in range(len(packed)):
        damaged = bytearray(packed)
        damaged[offset] ^= 1 << (offset % 8)
        try:
            open_archive(BytesReader(bytes(damaged)), LIMIT, go_on)
        except ArchiveError:
            continue
        assert unpack(bytes(damaged)) == data
        passed += 1
    assert passed < 20


def test_a_preset_dictionary_or_raw_deflate_is_refused() -> None:
    for data in (zlib.compress(b"hello"), b"hello", b""):
        with pytest.raises(ArchiveInvalid):
            unpack(data)


def test_take_and_skip_know_the_end() -> None:
    source = GzipSource(BytesReader(gzip.compress(b"0123456789")), LIMIT, go_on)
    assert source.take(3) == b"012"
    source.skip(2)
    assert source.take(0) == b""
    with pytest.raises(ArchiveInvalid, match="cut off"):
        source.take(6)
    with pytest.raises(ArchiveInvalid, match="cut off"):
        source.skip(1)


def test_the_forward_reader_goes_forward_only() -> None:
    data = bytes(range(250)) * 10_000
    reader = ForwardReader(BytesReader(gzip.compress(data)), len(data), LIMIT, go_on)
    assert reader.read_at(10, 5) == data[10:15]
    buffer = bytearray(1_500_000)
    assert reader.readinto_at(20, buffer) == len(buffer)
    assert buffer == data[20 : 20 + len(buffer)]
    with pytest.raises(ValueError, match="forward"):
        reader.read_at(0, 1)
    assert reader.read_at(len(data) - 3, 10) == data[-3:]
