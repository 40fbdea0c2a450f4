cdef class Credentials:
    cdef readonly str email
    cdef readonly str password
