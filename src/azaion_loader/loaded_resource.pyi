from collections.abc import Iterator
from typing import final

from azaion_loader.security import SecretKey

__all__ = ["LoadedResource"]

@final
class LoadedResource:
    length: int
    def __init__(self, descriptor: int, small: bytes, key: SecretKey) -> None: ...
    def chunks(self, chunk_bytes: int = ...) -> Iterator[bytes]: ...
    def duplicate(self) -> LoadedResource: ...
    def close(self) -> None: ...
