from collections.abc import Callable, Iterable

from azaion_loader.archive_model import (
    ArchiveImage,
    ArchiveIndex,
    Cancelled,
    Layer,
    Member,
    Reader,
)

__all__ = [
    "ArchiveImage",
    "ArchiveIndex",
    "Layer",
    "Member",
    "Reader",
    "looks_like_archive",
    "open_archive",
    "prove_layers",
]

def looks_like_archive(first_bytes: bytes) -> bool: ...
def open_archive(reader: Reader, max_bytes: int, cancelled: Cancelled) -> ArchiveIndex: ...
def prove_layers(
    reader: Reader,
    index: ArchiveIndex,
    layers: Iterable[Layer],
    progress: Callable[[int], None],
    cancelled: Cancelled,
    threads: int = 1,
) -> None: ...
