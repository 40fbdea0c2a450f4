"""The development key profile, derived a second time.

The development servers and the tests encrypt with this module, never with `azaion_loader.security`, so that a
mistake in the one is seen by the other. The rules are those of the formats document: H(s) = Base64(SHA-384(s)),
an AES key is the SHA-256 of its key string, and everything is AES-256-CBC with PKCS#7 behind a 16-byte IV.
"""

import base64
import hashlib
import hmac
import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HARDWARE_SALT = "dev-hardware-salt"
API_SALT = "dev-api-salt"
RESOURCE_SECRET = "dev-resource-secret"  # noqa: S105 - public by design: the development profile protects nothing


def key_string(text: str) -> str:
    """Return H(text): Base64 of the SHA-384 of its UTF-8 bytes."""
    return base64.b64encode(hashlib.sha384(text.encode()).digest()).decode()


def aes_key(text: str) -> bytes:
    """Return the 32-byte AES key of a key string."""
    return hashlib.sha256(text.encode()).digest()


def hardware_hash(hardware: str) -> str:
    """Return what stands for a machine in the download key."""
    return key_string(f"Azaion_{hardware}_{HARDWARE_SALT}")


def download_key(email: str, password: str, hardware: str) -> bytes:
    """Return the 32-byte key under which `/resources/get` answers this user on this machine."""
    return aes_key(key_string(f"{email}-{password}-{hardware_hash(hardware)}-{API_SALT}"))


def resource_key() -> bytes:
    """Return the 32-byte key that all devices share for resources."""
    return aes_key(key_string(RESOURCE_SECRET))


def resource_mac_key() -> bytes:
    """Return the 32-byte key of `azaion-mac`."""
    return hmac.digest(resource_key(), b"azaion-resource-mac-v1", "sha256")


def archive_key(key_fragment: bytes) -> bytes:
    """Return the 32-byte key of an image archive."""
    return hashlib.sha256(key_fragment).digest()


def encrypt(plain: bytes, key: bytes, iv: bytes | None = None) -> bytes:
    """Return IV and ciphertext; the IV is random unless given."""
    iv = os.urandom(16) if iv is None else iv
    padding = 16 - len(plain) % 16
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return iv + encryptor.update(plain + bytes([padding]) * padding) + encryptor.finalize()


def decrypt(data: bytes, key: bytes) -> bytes:
    """Return the plaintext of IV and ciphertext. Raises ValueError when the padding is wrong."""
    decryptor = Cipher(algorithms.AES(key), modes.CBC(data[:16])).decryptor()
    padded = decryptor.update(data[16:]) + decryptor.finalize()
    padding = padded[-1] if padded else 0
    if not 1 <= padding <= 16 or padded[-padding:] != bytes([padding]) * padding:
        raise ValueError("wrong padding")
    return padded[:-padding]
