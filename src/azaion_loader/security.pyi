from typing import final

from typing_extensions import Buffer

from azaion_loader.cbc import CbcDecryptor, CbcEncryptor, CbcReader, decrypt, encrypt
from azaion_loader.secret_key import SecretKey

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

def hardware_hash(hardware: str) -> str:
    """Return H("Azaion_" + hardware + "_" + hardware_salt): 64 characters of Base64."""

def download_key_string(email: str, password: str, hardware: str) -> str:
    """Return the key string of the download key. A secret in a Python string, which can't be wiped: for vectors."""

def download_key(email: str, password: str, hardware: str) -> SecretKey:
    """Return the 32-byte AES key of what the Resource API sends to this user on this machine.

    `email` is the token's `unique_name` as given, `hardware` the plain hardware string.
    Raises InvalidRequest where a text can't be encoded.
    """

def resource_key_string() -> str:
    """Return the key string of the resource key. A secret in a Python string, which can't be wiped: for vectors."""

def resource_key() -> SecretKey:
    """Return the 32-byte AES key shared by all resources."""

def resource_mac_key() -> SecretKey:
    """Return the 32-byte key of `azaion-mac`."""

def archive_key(key_fragment: Buffer) -> SecretKey:
    """Return the 32-byte AES key of the image archive. Raises WrongKey for an empty fragment."""

@final
class PartMac:
    """The `azaion-mac` of a resource: HMAC-SHA256 over `azaion-resource-v1` NUL folder NUL name NUL C, as a stream."""

    def __init__(self, folder: str, name: str) -> None: ...
    def update(self, chunk: Buffer) -> None:
        """Take the next bytes of C (IV and ciphertext)."""
    def hexdigest(self) -> str:
        """Return 64 lower-case hex digits."""
    def verify(self, expected_hex: str) -> None:
        """Raise IntegrityError unless the MAC of what was taken so far is `expected_hex`, in either case."""
