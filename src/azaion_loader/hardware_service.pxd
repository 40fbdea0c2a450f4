cdef class HardwareService:
    cdef object _root
    cdef object _override_file
    cdef object _lock
    cdef str _text
    cdef object _parts
