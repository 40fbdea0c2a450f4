cdef class PartMac:
    cdef object _mac
