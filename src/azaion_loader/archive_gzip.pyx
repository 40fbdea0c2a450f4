"""Unpacks gzip (RFC 1952) in sequence and within a bound, in constant memory.

Several gzip members in a row are one stream, as `gzip -d` and Go read them; anything else after a member is refused.
"""

import zlib

from azaion_loader.archive_model import CHUNK_BYTES
from azaion_loader.errors import ArchiveInvalid

__all__ = ["ForwardReader", "GzipSource", "Unpacker"]

cdef enum:
    INPUT_BYTES = 1 << 18
    OUTPUT_BYTES = 1 << 18
    ZERO_CHUNK = 1 << 18

cdef bytes ZEROS = bytes(ZERO_CHUNK)


class Unpacker:
    """Unpacks a gzip stream that arrives in pieces; `what` names it in messages."""

    def __init__(self, max_bytes: int, what: str):
        self._left = max_bytes
        self._what = what
        self._stream = zlib.decompressobj(31)
        self._begun = False

    def unpack(self, data):
        """Yield the unpacked bytes of the next piece, at most 256 KiB at a time.

        Raises ArchiveInvalid for damaged bytes, and as soon as the bound is passed.
        """
        pending = data
        while len(pending):
            if self._stream.eof:
                self._stream = zlib.decompressobj(31)
                self._begun = False
            self._begun = True
            try:
                # One byte more than allowed shows that there is more.
                out = self._stream.decompress(pending, min(OUTPUT_BYTES, self._left + 1))
            except zlib.error as err:
                raise ArchiveInvalid(f"{self._what} is damaged: it does not unpack.") from err
            pending = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            self._left -= len(out)
            if self._left < 0:
                raise ArchiveInvalid(f"{self._what} unpacks to more than is allowed.")
            if out:
                yield out
        # zlib may hold output back although it has taken all input.
        while not self._stream.eof:
            try:
                out = self._stream.decompress(b"", min(OUTPUT_BYTES, self._left + 1))
            except zlib.error as err:
                raise ArchiveInvalid(f"{self._what} is damaged: it does not unpack.") from err
            if not out:
                break
            self._left -= len(out)
            if self._left < 0:
                raise ArchiveInvalid(f"{self._what} unpacks to more than is allowed.")
            yield out

    def finish(self):
        """Raise ArchiveInvalid unless the stream ended with a whole gzip member."""
        if not self._begun or not self._stream.eof:
            raise ArchiveInvalid(f"{self._what} is cut off: its packed bytes end too early.")


class GzipSource:
    """Reads the tar inside a gzipped archive front to back."""

    def __init__(self, reader, max_bytes: int, cancelled):
        self._reader = reader
        self._cancelled = cancelled
        self._unpacker = Unpacker(max_bytes, "The archive")
        self._pieces = self._all_pieces()
        self._piece = memoryview(b"")
        self.position = 0

    def _all_pieces(self):
        cdef object offset = 0
        while offset < self._reader.size:
            self._cancelled()
            data = self._reader.read_at(offset, INPUT_BYTES)
            if not data:
                break
            offset += len(data)
            for piece in self._unpacker.unpack(data):
                self._cancelled()
                yield piece
        self._unpacker.finish()

    def take_some(self, length: int) -> memoryview:
        """Return at least one and at most `length` bytes, or none at the end; valid until the next call."""
        while not len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return memoryview(b"")
            self._piece = memoryview(piece)
        some, self._piece = self._piece[:length], self._piece[length:]
        self.position += len(some)
        return some

    def take(self, length: int) -> bytes:
        """Return exactly `length` bytes; raises ArchiveInvalid when the tar ends before that."""
        parts = []
        left = length
        while left:
            some = self.take_some(left)
            if not len(some):
                raise ArchiveInvalid(f"The archive is cut off: its tar ends at byte {self.position}.")
            parts.append(bytes(some))
            left -= len(some)
        return b"".join(parts)

    def skip(self, length: int) -> None:
        """Unpack and drop `length` bytes; raises ArchiveInvalid when the tar ends before that."""
        left = length
        while left:
            some = self.take_some(left)
            if not len(some):
                raise ArchiveInvalid(f"The archive is cut off: its tar ends at byte {self.position}.")
            left -= len(some)

    def finish(self) -> int:
        """Prove that only zeros follow, to the end of the last gzip member; return the length of the tar in bytes."""
        while len(some := self.take_some(ZERO_CHUNK)):
            if some != ZEROS[:len(some)]:
                raise ArchiveInvalid("The archive is damaged: something follows the end mark of the tar.")
        if self.position % 512:
            raise ArchiveInvalid("The archive is damaged: the tar's length is not a multiple of 512 bytes.")
        return self.position


class ForwardReader:
    """The tar inside a gzipped archive as a reader whose offsets may only grow: for a second pass in archive order."""

    def __init__(self, reader, size: int, max_bytes: int, cancelled):
        self._source = GzipSource(reader, max_bytes, cancelled)
        self.size = size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, which must not lie before the end of an earlier call."""
        buffer = bytearray(length)
        count = self.readinto_at(offset, buffer)
        return bytes(buffer[:count])

    def readinto_at(self, offset: int, buffer) -> int:
        """Fill `buffer` from `offset`, which must not lie before the end of an earlier call; return the count."""
        if offset < self._source.position:
            raise ValueError("a gzipped archive is read forward only")
        self._source.skip(offset - self._source.position)
        view = memoryview(buffer)
        cdef Py_ssize_t filled = 0
        while filled < len(view):
            some = self._source.take_some(min(len(view) - filled, CHUNK_BYTES))
            if not len(some):
                break
            view[filled:filled + len(some)] = some
            filled += len(some)
        return filled
