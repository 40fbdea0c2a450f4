cdef class Resources:
    cdef object _sources
    cdef object _cache
    cdef object _proofs
    cdef bint _require_part_mac
    cdef readonly object upload_max_bytes
    cdef double _reread_pause_s

    cdef object _load_cached(self, object request, bytes small)
    cdef object _bring(self, object request, bytes small)
    cdef object _adopt(self, object request, bytes small, object found, object claims)
    cdef object _transfer(self, object request, bytes small, object found, object memory)
    cdef object _remember(self, object request, bytes small, object found, object claims, object digests)
