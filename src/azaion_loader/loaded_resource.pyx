"""A resource whose parts are proved, ready to be read as plaintext in constant memory."""

import os

cimport cython

from azaion_loader import security
from azaion_loader.errors import IntegrityError
from azaion_loader.part_proof import MIN_CIPHERTEXT_BYTES, PartsDontFit

__all__ = ["LoadedResource"]

CHUNK_BYTES = 256 * 1024


@cython.final
cdef class LoadedResource:
    """The plaintext of small part ‖ big part; `length` in bytes is exact before anything is read.

    Takes over the big part's descriptor, and with it the mark that the part is in use, also when it raises.
    Raises PartsDontFit where the last block's padding is wrong.
    """

    def __cinit__(self):
        self._descriptor = -1

    def __init__(self, descriptor: int, small: bytes, key: object) -> None:
        self._descriptor = descriptor
        self._small = small
        self._key = key
        self._big_bytes = os.fstat(descriptor).st_size
        total = len(small) + self._big_bytes
        if total % 16 or total < MIN_CIPHERTEXT_BYTES:
            raise PartsDontFit("the joined parts have a length that no ciphertext has")
        try:
            # The block before the last one takes the place of the IV.
            end = security.decrypt(self._ciphertext_at(total - MIN_CIPHERTEXT_BYTES, MIN_CIPHERTEXT_BYTES), key)
        except IntegrityError as err:
            raise PartsDontFit("the last block has no valid padding") from err
        self.length = total - MIN_CIPHERTEXT_BYTES + len(end)

    def chunks(self, chunk_bytes: int = CHUNK_BYTES):
        """Yield the plaintext, about `chunk_bytes` at a time. Raises IntegrityError, OSError."""
        # The head may be shorter than the IV, so the decryptor is given what follows until it has one.
        decryptor = security.CbcDecryptor(self._key)
        cdef long long offset = 0
        plain = decryptor.update(self._small)
        if plain:
            yield plain
        while offset < self._big_bytes:
            piece = os.pread(self._descriptor, min(<long long>chunk_bytes, self._big_bytes - offset), offset)
            if not piece:
                raise IntegrityError("The cached part became shorter while it was read.")
            offset += len(piece)
            plain = decryptor.update(piece)
            if plain:
                yield plain
        plain = decryptor.finalize()
        if plain:
            yield plain

    def duplicate(self) -> LoadedResource:
        """Return another reader of the same proved bytes, with a life of its own."""
        return LoadedResource(os.dup(self._descriptor), self._small, self._key)

    def close(self) -> None:
        """Let go of the part; without effect the second time."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __dealloc__(self):
        if self._descriptor >= 0:
            os.close(self._descriptor)

    cdef bytes _ciphertext_at(self, long long offset, long long count):
        """Return bytes of the joined parts, at most up to their end."""
        cdef long long small_bytes = len(self._small)
        head = self._small[offset:offset + count]
        return head + os.pread(self._descriptor, count - len(head), max(offset - small_bytes, 0))
