"""E-mail and password of one account, kept out of logs, tracebacks and pickles.

The password is a Python string, so it can't be wiped: it lives until the next successful log-in or the exit,
since each read of a resource carries it.
"""

import cython
from hmac import compare_digest

from azaion_loader.errors import InvalidRequest


@cython.final
cdef class Credentials:
    """One account's e-mail and password.

    Raises InvalidRequest where a text holds half of a surrogate pair, which no encoding can carry.
    """

    def __init__(self, str email not None, str password not None) -> None:
        for text in (email, password):
            if not encodable(text):
                raise InvalidRequest("The e-mail or the password holds characters that can't be sent.")
        self.email = email
        self.password = password

    def __repr__(self) -> str:
        return "Credentials(email='***', password='***')"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Credentials):
            return NotImplemented
        cdef Credentials theirs = other
        # Both comparisons always run, so the time tells nothing about which of the two differs.
        same_email = compare_digest(self.email.encode(), theirs.email.encode())
        same_password = compare_digest(self.password.encode(), theirs.password.encode())
        return same_email & same_password

    def __reduce_ex__(self, protocol: object) -> object:
        raise TypeError("Credentials are never pickled or copied")


cdef bint encodable(str text):
    # Looked at instead of tried: a UnicodeEncodeError would carry the password in its `object`.
    return not any("\ud800" <= character <= "\udfff" for character in text)
