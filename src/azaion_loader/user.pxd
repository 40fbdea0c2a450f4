cdef class User:
    cdef readonly str user_id
    cdef readonly str email
    cdef readonly object role
