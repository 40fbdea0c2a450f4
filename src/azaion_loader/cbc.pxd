from azaion_loader.secret_key cimport SecretKey


cdef class CbcEncryptor:
    cdef readonly bytes iv
    cdef object _context
    cdef unsigned long long _taken
    cdef bint _iv_given


cdef class CbcDecryptor:
    cdef SecretKey _key
    cdef object _context
    cdef bytes _held
    cdef unsigned long long _taken
    cdef bint _finished


cdef class CbcReader:
    cdef readonly long long size
    cdef object _file
    cdef int _descriptor
    cdef SecretKey _key
    cdef list _spare
    cdef long long _prove_tail(self) except -1
    cdef Py_ssize_t _decrypt_into(self, long long offset, object view) except -1
    cdef int _read_exactly(self, long long position, object view) except -1
