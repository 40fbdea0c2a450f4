from types import TracebackType
from typing import Self, final

from azaion_loader.part_cache import PartCache
from azaion_loader.part_source import PartSources

__all__ = ["Publication"]

@final
class Publication:
    def __init__(
        self,
        sources: PartSources,
        cache: PartCache,
        name: str,
        *,
        folder: str | None,
        expected_bytes: int,
        max_bytes: int,
    ) -> None: ...
    def write(self, plain: bytes | bytearray) -> None: ...
    def commit(self, folder: str) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
