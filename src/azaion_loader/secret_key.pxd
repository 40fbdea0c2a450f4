cdef class SecretKey:
    cdef unsigned char *_data
    cdef Py_ssize_t _size

cdef SecretKey adopt(bytes data)
cdef SecretKey empty_key(Py_ssize_t size)
cdef void wipe(bytes data) noexcept
