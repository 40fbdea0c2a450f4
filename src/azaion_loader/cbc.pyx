"""AES-256-CBC with PKCS#7, a random 16-byte IV in front (docs/formats.md): one shot, as a stream, and seekable.

CBC has no tag: these classes notice a wrong length and a wrong padding, nothing else. What proves integrity is said
there too. All faults of foreign bytes give one and the same IntegrityError.

A cipher object of the cryptography library keeps two things of a key: a view of our SecretKey, which keeps that
alive, and OpenSSL's expanded copy, which OpenSSL overwrites when it frees the context. So a key lasts as long as its
longest context; contexts here live for one call or one stream and are dropped at its end.
"""

import os

import cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC

from azaion_loader.errors import IntegrityError
from azaion_loader.secret_key cimport SecretKey

BLOCK_BYTES = 16
# The ciphertext of one step. Larger is not faster: 256 KiB still fit a core's second-level cache beside the
# plaintext, so that bytes from the page cache are decrypted before they leave it.
CHUNK_BYTES = 256 * 1024

cdef enum:
    BLOCK = 16
    CHUNK = 256 * 1024
    KEY_BYTES = 32
    # cryptography refuses to decrypt into a buffer with less than this to spare, although it writes nothing there.
    SLACK = BLOCK - 1
    SPARE_BUFFERS = 4

cdef extern from *:
    """
    #define PyBUF_WRITE_FLAG PyBUF_WRITE
    """
    int PyBUF_WRITE_FLAG


cdef object new_cipher(SecretKey key, object iv):
    if key._size != KEY_BYTES:
        raise ValueError("AES-256 takes a key of 32 bytes")
    return Cipher(AES256(memoryview(key)), CBC(iv))


cdef int padding_of(const unsigned char[::1] block) except -1:
    """Return the length of the padding in the last block, 1 to 16; raise IntegrityError where there is none.

    Every byte is looked at whatever the others hold: the time tells nothing about where the padding is wrong.
    """
    cdef unsigned int length = block[BLOCK - 1]
    cdef unsigned int wrong = (length - 1) >> 4  # 0 for 1 to 16 alone
    cdef unsigned int inside
    cdef int index
    for index in range(BLOCK):
        inside = (<unsigned int>(BLOCK - 1 - index) - length) >> 31  # 1 in the last `length` bytes
        wrong |= (block[index] ^ length) & (0 - inside)
    if wrong:
        raise IntegrityError
    return length


def encrypt(plain: object, SecretKey key not None, iv: object = None) -> bytes:
    """Return IV and ciphertext. A random IV is made where none is given; only tests give one."""
    encryptor = CbcEncryptor(key, iv)
    return encryptor.update(plain) + encryptor.finalize()


def decrypt(data: object, SecretKey key not None) -> bytes:
    """Return the plaintext of IV and ciphertext. Raises IntegrityError, with one message for every fault."""
    decryptor = CbcDecryptor(key)
    return decryptor.update(data) + decryptor.finalize()


@cython.final
cdef class CbcEncryptor:
    """Encrypts a stream: the outputs of all `update` calls and of `finalize`, joined, are IV and ciphertext."""

    def __init__(self, SecretKey key not None, iv: object = None) -> None:
        self.iv = os.urandom(BLOCK) if iv is None else bytes(iv)
        self._context = new_cipher(key, self.iv).encryptor()

    def update(self, chunk: object) -> bytes:
        """Return the whole blocks that `chunk` completes; the first output begins with the IV."""
        if self._context is None:
            raise ValueError("The stream is finished")
        self._taken += memoryview(chunk).nbytes
        encrypted = self._context.update(chunk)
        if self._iv_given:
            return encrypted
        self._iv_given = True
        return self.iv + encrypted

    def finalize(self) -> bytes:
        """Return the padded last block (behind the IV, where nothing came before)."""
        padding = BLOCK - self._taken % BLOCK
        last = self.update(bytes([padding]) * padding)
        self._context.finalize()
        self._context = None
        return last


@cython.final
cdef class CbcDecryptor:
    """Decrypts a stream of IV and ciphertext that arrives in pieces of any size."""

    def __init__(self, SecretKey key not None) -> None:
        self._key = key
        self._held = b""

    def update(self, chunk: object) -> bytes:
        """Return what can be decrypted so far; the last block is held back until `finalize`."""
        if self._finished:
            raise ValueError("The stream is finished")
        view = memoryview(chunk).cast("B")
        self._taken += len(view)
        if self._context is None:
            missing = BLOCK - len(self._held)
            self._held += bytes(view[:missing])
            if len(self._held) < BLOCK:
                return b""
            self._context = new_cipher(self._key, self._held).decryptor()
            self._key = None
            self._held = b""
            view = view[missing:]
        if not len(view):
            return b""
        held = len(self._held)
        decrypted = bytearray(held + len(view) + 2 * BLOCK)
        decrypted[:held] = self._held
        end = held + self._context.update_into(view, memoryview(decrypted)[held:])
        keep = max(end - BLOCK, 0)
        self._held = bytes(decrypted[keep:end])
        return bytes(memoryview(decrypted)[:keep])

    def finalize(self) -> bytes:
        """Return the rest without its padding. Raises IntegrityError."""
        if self._finished:
            raise ValueError("The stream is finished")
        self._finished = True
        self._context = self._key = None
        if self._taken % BLOCK or self._taken < 2 * BLOCK:
            raise IntegrityError
        return self._held[: BLOCK - padding_of(self._held)]


@cython.final
cdef class CbcReader:
    """Reads the plaintext of an encrypted file at any offset, in constant memory, from any number of threads.

    The ciphertext block in front of a block is its IV, and the file begins with the IV of the first: so plaintext
    offset 16·n needs the file from offset 16·n on, whatever came before.
    """

    def __init__(self, file: object, SecretKey key not None) -> None:
        self._file = file  # kept, so that the descriptor isn't closed and given to another file
        self._descriptor = file if isinstance(file, int) else file.fileno()
        self._key = key
        self._spare = []
        self.size = self._prove_tail()

    def close(self) -> None:
        """Let go of the key, whoever still holds this reader: it is overwritten once no read uses it."""
        self._key = None

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer only at the end. Raises IntegrityError, ValueError."""
        if offset < 0 or length < 0:
            raise ValueError("An offset and a length are 0 or more")
        cdef Py_ssize_t wanted = max(min(length, self.size - offset), 0)
        cdef bytes plain = PyBytes_FromStringAndSize(NULL, wanted)
        if wanted:
            # Written before anybody else can see the object, and the view is released: no copy of the plaintext.
            with PyMemoryView_FromMemory(PyBytes_AS_STRING(plain), wanted, PyBUF_WRITE_FLAG) as view:
                self._decrypt_into(offset, view)
        return plain

    def readinto_at(self, offset: int, buffer: object) -> int:
        """Fill a writable buffer from `offset`; return the count, short only at the end.

        Raises IntegrityError where the file can't be read or became shorter, ValueError for a negative offset.
        """
        if offset < 0:
            raise ValueError("An offset is 0 or more")
        with memoryview(buffer) as given, given.cast("B") as view:
            if view.readonly:
                raise TypeError("The buffer must be writable")
            wanted = min(len(view), self.size - offset)
            if wanted <= 0:
                return 0
            with view[:wanted] as target:
                return self._decrypt_into(offset, target)

    cdef Py_ssize_t _decrypt_into(self, long long offset, object view) except -1:
        cdef Py_ssize_t length = len(view), done = 0, take, start, direct, skip = offset % BLOCK
        cdef long long position = offset - skip, end = offset + length
        cdef object context = None, source, small
        cdef SecretKey key = self._key
        if key is None:
            raise ValueError("The reader is closed")
        cdef object scratch = self._spare.pop() if length > CHUNK and self._spare else None
        if scratch is None:
            scratch = memoryview(bytearray(min(length + 3 * BLOCK, CHUNK + BLOCK)))
        # `position` is where the next block's IV stands in the file; only the first step reads that IV again.
        while done < length:
            take = min(CHUNK, (end - position + SLACK) // BLOCK * BLOCK)
            if context is None:
                source = scratch[:take + BLOCK]
                self._read_exactly(position, source)
                context = new_cipher(key, bytes(source[:BLOCK])).decryptor()
                source = source[BLOCK:]
            else:
                source = scratch[:take]
                self._read_exactly(position + BLOCK, source)
            position += take
            start = 0
            if skip:
                small = context.update(source[:BLOCK])[skip:skip + length]
                view[:len(small)] = small
                done, start, skip = len(small), BLOCK, 0
            # Straight into the caller's buffer, but for the last one or two blocks where the slack isn't there.
            direct = min(take - start, max(length - done - SLACK, 0) // BLOCK * BLOCK)
            if direct:
                context.update_into(source[start:start + direct], view[done:done + direct + SLACK])
                done, start = done + direct, start + direct
            if start < take:
                small = context.update(source[start:])[:length - done]
                view[done:done + len(small)] = small
                done += len(small)
        if length > CHUNK and len(self._spare) < SPARE_BUFFERS:
            self._spare.append(scratch)
        return done

    cdef int _read_exactly(self, long long position, object view) except -1:
        cdef Py_ssize_t count, got = 0, wanted = len(view)
        try:
            while got < wanted:
                count = os.preadv(self._descriptor, [view[got:]], position + got)
                if count == 0:
                    raise IntegrityError
                got += count
        except OSError as err:
            raise IntegrityError from err
        return 0

    cdef long long _prove_tail(self) except -1:
        try:
            stored = os.fstat(self._descriptor).st_size
        except OSError as err:
            raise IntegrityError from err
        if stored < 2 * BLOCK or stored % BLOCK:
            raise IntegrityError
        tail = memoryview(bytearray(2 * BLOCK))
        self._read_exactly(stored - 2 * BLOCK, tail)
        last = new_cipher(self._key, bytes(tail[:BLOCK])).decryptor().update(tail[BLOCK:])
        return stored - BLOCK - padding_of(last)
