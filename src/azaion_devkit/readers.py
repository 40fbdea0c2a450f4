"""Readers and damage for tests of archives: bytes, sparse gigabytes, and what a flipped bit does to CBC plaintext."""

import random
from collections.abc import Sequence

BLOCK_BYTES = 16


class BytesReader:
    """Random access to bytes in memory; `bytes_read` counts."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.bytes_read = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end."""
        data = self.data[offset : offset + length]
        self.bytes_read += len(data)
        return data

    def readinto_at(self, offset: int, buffer: bytearray | memoryview, /) -> int:
        """Fill `buffer` from `offset` and return the count."""
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class SparseReader(BytesReader):
    """Gigabytes of zeros with some bytes between: `segments` are literal bytes, or the length of a run of zeros."""

    def __init__(self, segments: Sequence[bytes | int]) -> None:
        super().__init__(b"")
        self._segments: list[tuple[int, bytes]] = []
        self.size = 0
        for segment in segments:
            if isinstance(segment, bytes):
                self._segments.append((self.size, segment))
                self.size += len(segment)
            else:
                self.size += segment

    def read_at(self, offset: int, length: int, /) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end."""
        data = bytearray(max(0, min(length, self.size - offset)))
        for start, literal in self._segments:
            first, last = max(offset, start), min(offset + len(data), start + len(literal))
            if first < last:
                data[first - offset : last - offset] = literal[first - start : last - start]
        self.bytes_read += len(data)
        return bytes(data)


def cbc_damage(plain: bytes, offset: int, bit: int, randomness: random.Random) -> bytes:
    """Return `plain` as it decrypts when bit `bit` of the ciphertext byte under `offset` is flipped.

    The block is garbled, and the same bit of the next block flipped. An `offset` from -16 to -1 stands for the IV,
    which garbles nothing.
    """
    damaged = bytearray(plain)
    block = offset // BLOCK_BYTES * BLOCK_BYTES
    if block >= 0:
        length = min(BLOCK_BYTES, len(plain) - block)
        damaged[block : block + length] = randomness.randbytes(length)
    if offset + BLOCK_BYTES < len(damaged):
        damaged[offset + BLOCK_BYTES] ^= 1 << bit
    return bytes(damaged)
