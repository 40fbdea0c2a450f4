cdef class ApiClient:
    cdef object _transport
    cdef str _base_url
    cdef double _login_timeout_s
    cdef double _request_timeout_s

    cdef object _call(
        self, str method, str path, str token, Py_ssize_t max_bytes, object json, object files, tuple accept
    )
    cdef object _is_listed(self, str token, str folder, str name)
