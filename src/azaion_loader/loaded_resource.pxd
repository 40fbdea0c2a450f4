cdef class LoadedResource:
    cdef int _descriptor
    cdef object _key
    cdef bytes _small
    cdef long long _big_bytes
    cdef readonly long long length

    cdef bytes _ciphertext_at(self, long long offset, long long count)
