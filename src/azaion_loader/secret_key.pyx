"""Secrets in memory that is overwritten when their owner goes.

Freed memory keeps its content, so a core file or a later allocation would show a key long after its use. Python's
own bytes can't promise more; hence keys live in a C buffer here, and the short-lived bytes on the way to one are
wiped in place (`wipe`, `adopt`).
"""

import cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from hmac import compare_digest

cdef extern from "string.h" nogil:
    # Unlike memset before a free, the compiler may not leave it out. glibc 2.25, musl 1.1.20.
    void explicit_bzero(void *data, size_t size)


@cython.final
cdef class SecretKey:
    """A secret in memory of its own, overwritten with zeros when its owner goes."""

    def __init__(self, data: object) -> None:
        if data is None:
            raise TypeError("A key is made of bytes")  # None would pass as a typed view without content
        cdef const unsigned char[::1] source = data
        if self._data is not NULL:
            raise TypeError("A key is set once")
        if source.shape[0] == 0:
            raise ValueError("A key holds at least one byte")
        allocate(self, source.shape[0])
        memcpy(self._data, &source[0], source.shape[0])

    def __dealloc__(self) -> None:
        if self._data is not NULL:
            explicit_bzero(self._data, self._size)
            free(self._data)

    @property
    def _address(self) -> int:
        return <uintptr_t>self._data

    def reveal(self) -> bytes:
        """Return a copy of the bytes, which nothing wipes: for tests and for formats that need bytes."""
        return PyBytes_FromStringAndSize(<char *>self._data, self._size)

    def __len__(self) -> int:
        return self._size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        # The view holds a reference to this object, so the bytes outlive every reader of them.
        PyBuffer_FillInfo(buffer, self, self._data, self._size, 1, flags)

    def __repr__(self) -> str:
        return "SecretKey('***')"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        return compare_digest(self, other)

    def __reduce_ex__(self, protocol: object) -> object:
        raise TypeError("A key is never pickled or copied")


cdef int allocate(SecretKey key, Py_ssize_t size) except -1:
    key._data = <unsigned char *>malloc(size)
    if key._data is NULL:
        raise MemoryError
    memset(key._data, 0, size)
    key._size = size
    return 0


cdef SecretKey empty_key(Py_ssize_t size):
    """Return a key of `size` zero bytes for the caller to fill."""
    cdef SecretKey key = SecretKey.__new__(SecretKey)
    allocate(key, size)
    return key


cdef SecretKey adopt(bytes data):
    """Return a key with the content of `data`, and wipe `data`, which nobody else may hold."""
    cdef SecretKey key = SecretKey(data)
    wipe(data)
    return key


cdef void wipe(bytes data) noexcept:
    """Overwrite bytes that were just made and that nobody else holds."""
    # Bytes of length 0 and 1 are shared by the whole interpreter.
    if PyBytes_GET_SIZE(data) > 1:
        explicit_bzero(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
