"""Streams and seekable reads of AES-256-CBC at their edges."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azaion_loader.cbc import CHUNK_BYTES, CbcDecryptor, CbcEncryptor, CbcReader, decrypt, encrypt
from azaion_loader.errors import INTEGRITY_MESSAGE, IntegrityError
from azaion_loader.secret_key import SecretKey

KEY = SecretKey(bytes(range(32)))
OTHER_KEY = SecretKey(bytes(32))
C = CHUNK_BYTES
SMALL = [0, 1, 15, 16, 17, 31, 32, 33, 47, 48, 49]
LENGTHS = [*SMALL, C - 17, C - 16, C - 1, C, C + 1, C + 15, C + 16, C + 17, 2 * C - 1, 2 * C, 2 * C + 1, 3 * C + 5]
PIECES = [1, 15, 16, 17, C - 1, C, C + 1]


def positioned(length: int) -> bytes:
    """Return bytes of which each 8 tell their own offset, so that a wrong offset can't look right."""
    return b"".join(index.to_bytes(8, "big") for index in range(length // 8 + 1))[:length]


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Callable[[bytes], BinaryIO]]:
    opened: list[BinaryIO] = []

    def store(data: bytes) -> BinaryIO:
        path = tmp_path / f"{len(opened)}.enc"
        path.write_bytes(data)
        opened.append(path.open("rb"))
        return opened[-1]

    yield store
    for file in opened:
        file.close()


Store = Callable[[bytes], BinaryIO]


def streamed(coder: CbcEncryptor | CbcDecryptor, data: bytes, piece: int) -> bytes:
    outputs = [coder.update(data[start : start + piece]) for start in range(0, len(data), piece)]
    return b"".join([*outputs, coder.finalize()])


@pytest.mark.parametrize("length", LENGTHS)
def test_one_shot_round_trip(length: int) -> None:
    plain = positioned(length)
    data = encrypt(plain, KEY)
    assert len(data) == 16 + (length // 16 + 1) * 16
    assert decrypt(data, KEY) == plain


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("length", LENGTHS)
def test_streams_agree_with_one_shot(length: int, piece: int) -> None:
    if piece < 15 and length > 100:
        piece = 4099  # a byte at a time proves nothing more on long data
    plain = positioned(length)
    iv = os.urandom(16)
    data = encrypt(plain, KEY, iv)
    encryptor = CbcEncryptor(KEY, iv)
    assert encryptor.iv == iv
    assert streamed(encryptor, plain, piece) == data
    assert streamed(CbcDecryptor(KEY), data, piece) == plain


def test_each_encryption_has_its_own_iv() -> None:
    assert encrypt(b"x", KEY)[:16] != encrypt(b"x", KEY)[:16]


def test_the_first_output_begins_with_the_iv() -> None:
    encryptor = CbcEncryptor(KEY)
    assert encryptor.update(b"") == encryptor.iv
    assert len(encryptor.finalize()) == 16


def test_any_buffer_is_taken() -> None:
    plain = positioned(100)
    data = encrypt(memoryview(bytearray(plain)), KEY)
    assert decrypt(bytearray(data), KEY) == decrypt(memoryview(data), KEY) == plain


@pytest.mark.parametrize("coder", [CbcEncryptor, CbcDecryptor])
def test_a_finished_stream_takes_nothing(coder: type[CbcEncryptor] | type[CbcDecryptor]) -> None:
    stream = coder(KEY)
    stream.update(encrypt(b"", KEY))
    if isinstance(stream, CbcDecryptor):
        assert stream.finalize() == b""
    else:
        stream.finalize()
    calls: list[Callable[[], object]] = [lambda: stream.update(b"x"), stream.finalize]
    for call in calls:
        with pytest.raises(ValueError, match="finished"):
            call()


@pytest.mark.parametrize("size", [1, 16, 24, 31, 33, 64])
def test_only_keys_of_32_bytes(size: int, stored: Store) -> None:
    short = SecretKey(b"k" * size)
    with pytest.raises(ValueError, match="32 bytes"):
        encrypt(b"", short)
    with pytest.raises(ValueError, match="32 bytes"):
        decrypt(bytes(32), short)
    with pytest.raises(ValueError, match="32 bytes"):
        CbcReader(stored(bytes(32)), short)


def faults() -> Iterator[tuple[str, bytes]]:
    """Yield damaged ciphertexts, each of which padding or length give away."""
    good = encrypt(positioned(40), KEY, bytes(16))
    for size in (0, 1, 15, 16, 17, 31, 33, len(good) - 1):
        yield f"cut to {size}", good[:size]
    yield "cut by a block", good[:-16]
    yield "extended by a byte", good + b"\0"
    yield "extended by a block", good + bytes(16)
    yield "blocks swapped", good[:-32] + good[-16:] + good[-32:-16]
    for bit in range(8):
        yield f"bit {bit} of the padding", good[:-17] + bytes([good[-17] ^ 1 << bit]) + good[-16:]
    yield "first byte of the padding", good[:-24] + bytes([good[-24] ^ 1]) + good[-23:]
    yield "last block", good[:-1] + bytes([good[-1] ^ 1])


FAULTS = dict(faults())


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_gives_one_message(name: str, stored: Store) -> None:
    data = FAULTS[name]
    attempts: list[Callable[[], object]] = [
        lambda: decrypt(data, KEY),
        lambda: streamed(CbcDecryptor(KEY), data, 7),
        lambda: CbcReader(stored(data), KEY),
    ]
    for attempt in attempts:
        with pytest.raises(IntegrityError) as caught:
            attempt()
        assert str(caught.value) == INTEGRITY_MESSAGE
        assert caught.value.__cause__ is None


def raw_blocks(plain: bytes) -> bytes:
    """Encrypt whole blocks without padding."""
    return encrypt(plain, KEY)[: 16 + len(plain)]


@pytest.mark.parametrize("value", range(256))
def test_padding_bytes(value: int, stored: Store) -> None:
    """A last block of sixteen equal bytes is right only for 1 to 16."""
    data = raw_blocks(bytes(16) + bytes([value]) * 16)
    if 1 <= value <= 16:
        expected = bytes(16) + bytes([value]) * (16 - value)
        assert decrypt(data, KEY) == expected
        assert CbcReader(stored(data), KEY).read_at(0, 99) == expected
    else:
        with pytest.raises(IntegrityError):
            decrypt(data, KEY)


@pytest.mark.parametrize("padding", range(1, 17))
def test_each_byte_of_the_padding_counts(padding: int) -> None:
    for place in range(16):
        block = bytearray(b"\xaa" * (16 - padding) + bytes([padding]) * padding)
        block[place] ^= 0x40
        data = raw_blocks(bytes(block))
        if place < 16 - padding:
            assert decrypt(data, KEY) == bytes(block[: 16 - padding])
        else:
            with pytest.raises(IntegrityError):
                decrypt(data, KEY)


def test_a_wrong_key_is_found_by_padding_nearly_always() -> None:
    passed = 0
    for _ in range(500):
        try:
            decrypt(encrypt(b"x" * 20, KEY), OTHER_KEY)
            passed += 1
        except IntegrityError:
            pass
    assert passed < 25


@pytest.mark.parametrize("length", LENGTHS)
def test_reader_at_every_edge(length: int, stored: Store) -> None:
    plain = positioned(length)
    reader = CbcReader(stored(encrypt(plain, KEY)), KEY)
    assert reader.size == length
    edges = sorted({max(0, edge + step) for edge in (0, 16, C, 2 * C, length) for step in (-17, -16, -1, 0, 1, 15, 17)})
    for offset in edges:
        for size in (0, 1, 15, 16, 17, 30, 31, 32, 33, C - 1, C, C + 1, 2 * C + 3, length, length + 100):
            expected = plain[offset : offset + size]
            assert reader.read_at(offset, size) == expected
            buffer = bytearray(b"\xee" * (size + 40))
            assert reader.readinto_at(offset, memoryview(buffer)[20 : 20 + size]) == len(expected)
            assert buffer[20 : 20 + len(expected)] == expected
            assert buffer[:20] + buffer[20 + len(expected) :] == b"\xee" * (size + 40 - len(expected))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), length=st.integers(0, 3 * C))
def test_reader_agrees_with_one_shot(data: st.DataObject, length: int) -> None:
    plain = positioned(length)
    with tempfile.TemporaryFile() as file:
        file.write(encrypt(plain, KEY))
        file.flush()
        reader = CbcReader(file, KEY)
        for _ in range(5):
            offset = data.draw(st.integers(0, length + 40))
            size = data.draw(st.integers(0, 2 * C))
            assert reader.read_at(offset, size) == plain[offset : offset + size]


def test_reader_takes_a_descriptor(stored: Store) -> None:
    file = stored(encrypt(b"hello", KEY))
    assert CbcReader(file.fileno(), KEY).read_at(0, 5) == b"hello"


def test_reader_has_no_shared_position(stored: Store) -> None:
    file = stored(encrypt(positioned(100), KEY))
    file.seek(3)
    CbcReader(file, KEY).read_at(0, 100)
    assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 3


def test_reader_refuses_misuse(stored: Store) -> None:
    reader = CbcReader(stored(encrypt(b"hello", KEY)), KEY)
    calls: list[Callable[[], object]] = [lambda: reader.read_at(-1, 1), lambda: reader.read_at(0, -1)]
    for call in calls:
        with pytest.raises(ValueError, match="0 or more"):
            call()
    with pytest.raises(ValueError, match="0 or more"):
        reader.readinto_at(-1, bytearray(1))
    with pytest.raises(TypeError):
        reader.readinto_at(0, bytes(4))
    assert reader.readinto_at(0, bytearray()) == 0
    assert reader.read_at(1 << 62, 1 << 62) == b""


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "x.enc"
    path.write_bytes(encrypt(positioned(1000), KEY))
    with path.open("rb") as file:
        reader = CbcReader(file, KEY)
        os.truncate(path, 500)
        assert reader.read_at(0, 400) == positioned(400)
        with pytest.raises(IntegrityError):
            reader.read_at(0, 600)


def test_a_descriptor_that_cannot_be_read(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IntegrityError):
            CbcReader(descriptor, KEY)
    finally:
        os.close(descriptor)
    with pytest.raises(IntegrityError) as caught:
        CbcReader(descriptor, KEY)
    assert isinstance(caught.value.__cause__, OSError)


def test_sparse_files_beyond_four_gib(tmp_path: Path) -> None:
    """Only the two blocks around an offset matter, so a hole with one known block tells of 64-bit offsets."""
    known = encrypt(positioned(64), KEY)
    with (tmp_path / "sparse.enc").open("w+b") as file:
        for at in (0, (1 << 31) - 16, (1 << 32) - 16, (1 << 32) + (1 << 20)):
            file.seek(at)
            file.write(known)
        file.flush()
        reader = CbcReader(file, KEY)
        assert reader.size == (1 << 32) + (1 << 20) + 64
        for at in ((1 << 31) - 16, (1 << 32) - 16):
            assert reader.read_at(at + 1, 63) == positioned(64)[1:]


def test_readers_share_nothing_between_threads(stored: Store) -> None:
    plain = positioned(4 * C + 77)
    reader = CbcReader(stored(encrypt(plain, KEY)), KEY)
    wrong: list[tuple[int, int]] = []

    def read(seed: int) -> None:
        for turn in range(40):
            offset = (seed * 7919 + turn * 104729) % len(plain)
            size = (seed * 31 + turn * 65537) % (2 * C) + 1
            if reader.read_at(offset, size) != plain[offset : offset + size]:
                wrong.append((offset, size))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_closed_reader_has_no_key(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(encrypt(b"x" * 100, SecretKey(bytes(32))))
    with file.open("rb") as source:
        reader = CbcReader(source, SecretKey(bytes(32)))
        assert reader.read_at(0, 3) == b"xxx"
        reader.close()
        with pytest.raises(ValueError, match="closed"):
            reader.read_at(0, 3)
