cimport cython


@cython.final
cdef class CdnManager:
    cdef object _credentials
    cdef double _connect_timeout_s
    cdef double _request_timeout_s
    cdef object _limits
    cdef object _clients
    cdef object _session
    cdef object _lock
