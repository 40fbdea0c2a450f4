from typing import ClassVar, NoReturn, SupportsIndex, final

from typing_extensions import Buffer

@final
class SecretKey:
    """A secret in memory of its own, overwritten with zeros when its owner goes.

    It gives its bytes to whatever reads buffers (hashes, ciphers) without a copy, shows `***`, can't be pickled or
    copied, has no hash, and compares in constant time.
    """

    __hash__: ClassVar[None]  # type: ignore[assignment]
    def __init__(self, data: Buffer) -> None:
        """Copy `data`, which may not be empty. The caller's own bytes stay as they are."""
    @property
    def _address(self) -> int:
        """Where the bytes are, so that a test can look at them after the key is gone."""
    def reveal(self) -> bytes:
        """Return a copy of the bytes, which nothing wipes: for tests and for formats that need bytes."""
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn: ...
