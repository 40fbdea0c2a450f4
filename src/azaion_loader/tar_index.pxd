cdef class Header:
    cdef readonly str name
    cdef readonly str linkname
    cdef readonly object size
    cdef readonly str typeflag


cdef class _Extension:
    cdef readonly dict records
    cdef readonly str long_name
    cdef readonly str long_link
