"""What an image archive holds, once it is read: members, layers, images, and the index over them.

Plain values, shared by the reader of the archive (`archive`) and the plan of what to load (`load_plan`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

# Called at least once per chunk; raises Interrupted when the run has to stop.
Cancelled = Callable[[], None]

CHUNK_BYTES = 1 << 20


class Reader(Protocol):
    """Random access to the plaintext of an archive, safe to share between threads."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read_at(self, offset: int, length: int, /) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end."""

    def readinto_at(self, offset: int, buffer: bytearray | memoryview, /) -> int:
        """Fill `buffer` from `offset` and return the count, less than its length only at the end."""


class TarSource(Protocol):
    """A tar that is read front to back, by random access or unpacked on the way."""

    @property
    def position(self) -> int:
        """Where the next byte stands in the tar."""

    def take(self, length: int, /) -> bytes:
        """Return exactly `length` bytes. Raises ArchiveInvalid when the tar ends before that."""

    def skip(self, length: int, /) -> None:
        """Step over `length` bytes. Raises ArchiveInvalid when the tar ends before that."""

    def finish(self) -> int:
        """Prove that only zeros follow; return the length of the tar in bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the tar.

    `offset` is where its data begins in the (unpacked) tar, `size` its length, both in bytes. `name` has no slash
    at the end. `target` is the resolved name inside the archive for a link, else None.
    """

    name: str
    kind: Literal["file", "directory", "link"]
    offset: int
    size: int
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image, links resolved.

    `diff_id` is the digest of the unpacked bytes. `blob_digest` is the digest of the bytes as they stand in the
    archive: the same as `diff_id` unless the layer is `gzipped`.
    """

    name: str
    offset: int
    size: int
    diff_id: str
    blob_digest: str

    @property
    def gzipped(self) -> bool:
        """Whether the layer is packed inside the archive."""
        return self.blob_digest != self.diff_id


@dataclass(frozen=True, slots=True)
class ArchiveImage:
    """One image: `layers` stand in the order of `diff_ids`, base first; `config` is the document of that digest."""

    tags: tuple[str, ...]
    config_digest: str
    config: bytes = field(repr=False)
    diff_ids: tuple[str, ...]
    layers: tuple[Layer, ...]
    os: str
    architecture: str
    variant: str
    created: str


@dataclass(frozen=True, slots=True)
class ArchiveIndex:
    """All images of an archive.

    `tar_bytes` is the length of the (unpacked) tar. `proved` holds the digests of blobs whose bytes were hashed while
    the archive was opened: all of them when it is gzipped as a whole.
    """

    images: tuple[ArchiveImage, ...]
    tar_bytes: int
    layout: Literal["docker", "oci"]
    gzipped: bool
    max_bytes: int
    proved: frozenset[str] = frozenset()


def distinct_layers(layers: Iterable[Layer]) -> list[Layer]:
    """Return each layer of the archive once, in the order of the archive."""
    return [layer for _, layer in sorted({layer.offset: layer for layer in layers}.items())]
