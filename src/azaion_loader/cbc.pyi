from typing import Protocol, final, type_check_only

from typing_extensions import Buffer

from azaion_loader.secret_key import SecretKey

BLOCK_BYTES: int
CHUNK_BYTES: int

@type_check_only
class HasDescriptor(Protocol):
    """An open file, or anything else with a descriptor that can be read at an offset."""

    def fileno(self) -> int: ...

def encrypt(plain: Buffer, key: SecretKey, iv: Buffer | None = None) -> bytes:
    """Return IV and ciphertext. A random IV is made where none is given; only tests give one."""

def decrypt(data: Buffer, key: SecretKey) -> bytes:
    """Return the plaintext of IV and ciphertext. Raises IntegrityError, with one message for every fault."""

@final
class CbcEncryptor:
    """Encrypts a stream: the outputs of all `update` calls and of `finalize`, joined, are IV and ciphertext."""

    def __init__(self, key: SecretKey, iv: Buffer | None = None) -> None: ...
    @property
    def iv(self) -> bytes: ...
    def update(self, chunk: Buffer) -> bytes: ...
    def finalize(self) -> bytes: ...

@final
class CbcDecryptor:
    """Decrypts a stream of IV and ciphertext that arrives in pieces of any size."""

    def __init__(self, key: SecretKey) -> None: ...
    def update(self, chunk: Buffer) -> bytes:
        """Return what can be decrypted so far; the last block is held back until `finalize`."""
    def finalize(self) -> bytes:
        """Return the rest without its padding. Raises IntegrityError."""

@final
class CbcReader:
    """Reads the plaintext of an encrypted file at any offset, in constant memory, from any number of threads."""

    def __init__(self, file: HasDescriptor | int, key: SecretKey) -> None:
        """Prove the size and the padding of an open file, which stays the caller's and must stay open.

        Raises IntegrityError where the file is no whole ciphertext or the padding at its end is wrong.
        """
    @property
    def size(self) -> int:
        """Length of the plaintext in bytes."""
    def close(self) -> None:
        """Let go of the key; a read after that raises ValueError."""
    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer only at the end. Raises IntegrityError, ValueError."""
    def readinto_at(self, offset: int, buffer: Buffer) -> int:
        """Fill a writable buffer from `offset`; return the count, short only at the end.

        Raises IntegrityError where the file can't be read or became shorter, ValueError for a negative offset.
        """
