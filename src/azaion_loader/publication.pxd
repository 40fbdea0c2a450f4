cdef class Publication:
    cdef object _sources
    cdef object _cache
    cdef object _guard
    cdef object _encryptor
    cdef object _mac
    cdef object _sha256
    cdef object _aside
    cdef object _beside
    cdef str _folder
    cdef str _name
    cdef int _descriptor
    cdef bytearray _head
    cdef bytes _small
    cdef bint _cut
    cdef bint _ended
    cdef long long _plain_bytes
    cdef long long _max_bytes
    cdef long long _big_bytes

    cdef object _take(self, bytes ciphertext)
    cdef object _write_out(self, bytes ciphertext)
    cdef object _cut_off_head(self, long long count)
    cdef str _mac_for(self, str folder)
    cdef object _keep(self, str folder, object note)
