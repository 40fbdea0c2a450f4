"""Keys and MACs (docs/formats.md), from the key profile that is compiled in; the ciphers themselves are in `cbc`.

The three secrets of the profile stand masked in the module's read-only data and are unmasked into a SecretKey for
the moment of their use. That keeps them out of `strings` and of a core file; it is no protection against somebody
who runs the code under a debugger. Hash and HMAC objects of OpenSSL overwrite their state when they are freed; the
bytes that this module makes on the way to a key are wiped.
"""

import binascii
import hashlib
import hmac

import cython

from azaion_loader.cbc import CbcDecryptor, CbcEncryptor, CbcReader, decrypt, encrypt
from azaion_loader.errors import IntegrityError, InvalidRequest, WrongKey
from azaion_loader.secret_key import SecretKey
# Under a second name: a cimported name is not an attribute of this module, and `SecretKey` is to be one.
from azaion_loader.secret_key cimport SecretKey as Secret, adopt, empty_key, wipe

include "key_profile.pxi"

__all__ = [
    "CbcDecryptor",
    "CbcEncryptor",
    "CbcReader",
    "PartMac",
    "SecretKey",
    "archive_key",
    "decrypt",
    "download_key",
    "download_key_string",
    "encrypt",
    "hardware_hash",
    "is_development_profile",
    "resource_key",
    "resource_key_string",
    "resource_mac_key",
]


def is_development_profile() -> bool:
    """Whether this build holds a secret of the development key profile, which everybody knows."""
    return PROFILE_IS_DEVELOPMENT


def hardware_hash(str hardware not None) -> str:
    """Return H("Azaion_" + hardware + "_" + hardware_salt): 64 characters of Base64."""
    return hash_hardware(hardware).decode("ascii")


def download_key_string(str email not None, str password not None, str hardware not None) -> str:
    """Return the key string of the download key. A secret in a Python string, which can't be wiped: for vectors."""
    return derive_download(email, password, hardware).decode("ascii")


def download_key(str email not None, str password not None, str hardware not None) -> SecretKey:
    """Return the 32-byte AES key of what the Resource API sends to this user on this machine.

    `email` is the token's `unique_name` as given, `hardware` the plain hardware string.
    Raises InvalidRequest where a text can't be encoded.
    """
    return aes_key(derive_download(email, password, hardware))


def resource_key_string() -> str:
    """Return the key string of the resource key. A secret in a Python string, which can't be wiped: for vectors."""
    return key_string((resource_secret(),)).decode("ascii")


def resource_key() -> SecretKey:
    """Return the 32-byte AES key shared by all resources."""
    return aes_key(key_string((resource_secret(),)))


def resource_mac_key() -> SecretKey:
    """Return the 32-byte key of `azaion-mac`."""
    return adopt(new_mac(resource_key(), b"azaion-resource-mac-v1").digest())


def archive_key(key_fragment: object) -> SecretKey:
    """Return the 32-byte AES key of the image archive. Raises WrongKey for an empty fragment."""
    if not memoryview(key_fragment).nbytes:
        raise WrongKey("The Resource API's key fragment is empty.")
    return adopt(hashlib.sha256(key_fragment).digest())


@cython.final
cdef class PartMac:
    """The `azaion-mac` of a resource: HMAC-SHA256 over `azaion-resource-v1` NUL folder NUL name NUL C, as a stream."""

    def __init__(self, str folder not None, str name not None) -> None:
        head = b"\0".join((b"azaion-resource-v1", folder.encode(), name.encode(), b""))
        self._mac = new_mac(resource_mac_key(), head)

    def update(self, chunk: object) -> None:
        """Take the next bytes of C (IV and ciphertext)."""
        self._mac.update(chunk)

    def hexdigest(self) -> str:
        """Return 64 lower-case hex digits."""
        return self._mac.hexdigest()

    def verify(self, str expected_hex not None) -> None:
        """Raise IntegrityError unless the MAC of what was taken so far is `expected_hex`, in either case."""
        # As bytes, since compare_digest refuses text outside ASCII.
        expected = expected_hex.lower().encode("utf-8", "replace")
        if not hmac.compare_digest(self._mac.hexdigest().encode(), expected):
            raise IntegrityError

    def __reduce_ex__(self, protocol: object) -> object:
        raise TypeError("A MAC is never pickled or copied")


cdef object new_mac(Secret key, bytes message):
    # hmac takes no view, so it gets a copy, which is overwritten once OpenSSL has mixed it in.
    copy = bytearray(key)
    mac = hmac.new(copy, message, "sha256")
    copy[:] = bytes(len(copy))
    return mac


cdef Secret unmask(const volatile_byte *masked, const volatile_byte *mask, Py_ssize_t size):
    cdef Secret secret = empty_key(size)
    cdef Py_ssize_t index
    for index in range(size):
        secret._data[index] = masked[index] ^ mask[index]
    return secret


cdef Secret hardware_salt():
    return unmask(HARDWARE_SALT_MASKED, HARDWARE_SALT_MASK, HARDWARE_SALT_BYTES)


cdef Secret api_salt():
    return unmask(API_SALT_MASKED, API_SALT_MASK, API_SALT_BYTES)


cdef Secret resource_secret():
    return unmask(RESOURCE_SECRET_MASKED, RESOURCE_SECRET_MASK, RESOURCE_SECRET_BYTES)


cdef bytes utf8(str text):
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Without the cause on purpose: it carries the text, which may be a password.
        raise InvalidRequest("The e-mail, password or hardware string holds characters that can't be sent.") from None


cdef bytes key_string(tuple pieces):
    """Return H of the joined pieces, Base64(SHA-384(...)), in bytes that the caller owns alone."""
    hashed = hashlib.sha384()
    for piece in pieces:
        hashed.update(piece)
    digest = hashed.digest()
    encoded = binascii.b2a_base64(digest, newline=False)
    wipe(digest)
    return encoded


cdef bytes hash_hardware(str hardware):
    return key_string((b"Azaion_", utf8(hardware), b"_", hardware_salt()))


cdef bytes derive_download(str email, str password, str hardware):
    secret = utf8(password)
    try:
        return key_string((utf8(email), b"-", secret, b"-", hash_hardware(hardware), b"-", api_salt()))
    finally:
        wipe(secret)


cdef Secret aes_key(bytes owned_key_string):
    """Return SHA-256 of a key string, and wipe the key string."""
    key = adopt(hashlib.sha256(owned_key_string).digest())
    wipe(owned_key_string)
    return key
