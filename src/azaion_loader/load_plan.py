"""What to give to the engine: tars composed from our own manifest and the layers of a proved archive.

Nothing is copied before it is sent: a stream is a list of literal bytes and ranges of the archive's tar, in the order
of the archive, so that a gzipped archive can be read forward once more. The document that names the images comes last
of all members (`manifest.json`, `index.json`): a stream that is cut before it registers nothing in any engine.

Two shapes. `compose_docker_tar` is the layout of `docker save` (moby `image/tarexport/load.go` reads manifest.json);
classic stores take it without the layers that they hold, in a chain. `compose_oci_tar` is an OCI image layout 1.0 with
an image manifest of our own; containerd's importer (`core/images/archive/importer.go`) takes that without the blobs
that it holds.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from azaion_loader.archive_gzip import ForwardReader
from azaion_loader.archive_model import (
    CHUNK_BYTES,
    ArchiveImage,
    ArchiveIndex,
    Cancelled,
    Layer,
    Reader,
    distinct_layers,
)
from azaion_loader.errors import ArchiveInvalid
from azaion_loader.tar_writer import END_OF_TAR, padding, tar_header

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Span:
    """A range of the archive's (unpacked) tar, in bytes."""

    offset: int
    length: int


Segment = bytes | Span


@dataclass(frozen=True, slots=True)
class LoadStream:
    """A tar for the engine's standard input.

    `tags` are the names that it makes, `layers` the layers of the archive that it reads, each once: those to prove
    before. `total_bytes` is its exact length. It belongs to the archive whose index it was composed from.
    """

    tags: tuple[str, ...]
    layers: tuple[Layer, ...]
    segments: tuple[Segment, ...]
    total_bytes: int
    index: ArchiveIndex

    def chunks(
        self,
        reader: Reader,
        chunk_bytes: int = CHUNK_BYTES,
        cancelled: Cancelled = lambda: None,
        before_end: Callable[[], None] = lambda: None,
    ) -> Iterator[memoryview]:
        """Yield the tar in chunks of at most `chunk_bytes`; each is valid until the next one is asked for.

        `reader` is that of the archive. `before_end` is called, and may wait, when all layers are given and only the
        end is left, without which an engine registers nothing. Raises ArchiveInvalid if the archive has become
        shorter, or what `cancelled` or `before_end` raises.
        """
        if self.index.gzipped:
            reader = ForwardReader(reader, self.index.tar_bytes, self.index.max_bytes, cancelled)
        buffer = memoryview(bytearray(chunk_bytes))
        for number, segment in enumerate(self.segments, 1):
            if number == len(self.segments):
                before_end()
            if isinstance(segment, bytes):
                for start in range(0, len(segment), chunk_bytes):
                    yield memoryview(segment)[start : start + chunk_bytes]
                continue
            offset, end = segment.offset, segment.offset + segment.length
            while offset < end:
                cancelled()
                window = buffer[: min(chunk_bytes, end - offset)]
                if reader.readinto_at(offset, window) != len(window):
                    raise ArchiveInvalid("The archive has become shorter while it was being read.")
                yield window
                offset += len(window)


def held_layers(diff_ids: Sequence[str], engine_chains: Iterable[Sequence[str]]) -> int:
    """Return how many of `diff_ids`, base first, the engine holds: the longest prefix that one of its images shares.

    `engine_chains` are the `RootFS.Layers` of the engine's images. A layer counts only on top of the same layers,
    since engines store chains.
    """
    longest = 0
    for chain in engine_chains:
        shared = 0
        for ours, theirs in zip(diff_ids, chain, strict=False):
            if ours != theirs:
                break
            shared += 1
        longest = max(longest, shared)
    return longest


def compose_docker_tar(
    index: ArchiveIndex,
    images: Sequence[tuple[ArchiveImage, str]],
    include: Collection[str] | None = None,
) -> LoadStream:
    """Compose a `docker save` tar of these images, each under the one tag given with it.

    `include` holds the diff IDs of the layers to put in (None: all); the manifest names the others, too.
    """
    composer = _Composer()
    for image in {image.config_digest: image for image, _ in images}.values():
        composer.literal(f"{_hex(image.config_digest)}.json", image.config)
    for layer in _one_each(images, include, lambda layer: layer.diff_id):
        composer.layer(f"{_hex(layer.diff_id)}/layer.tar", layer)
    tags: dict[str, list[str]] = {}
    for image, tag in images:
        tags.setdefault(image.config_digest, []).append(tag)
    manifest = [
        {
            "Config": f"{_hex(image.config_digest)}.json",
            "RepoTags": tags[image.config_digest],
            "Layers": [f"{_hex(diff_id)}/layer.tar" for diff_id in image.diff_ids],
        }
        for image in {image.config_digest: image for image, _ in images}.values()
    ]
    composer.literal("manifest.json", _json(manifest))
    return composer.finish(index, images)


def compose_oci_tar(
    index: ArchiveIndex,
    images: Sequence[tuple[ArchiveImage, str]],
    include: Collection[str] | None = None,
) -> LoadStream:
    """Compose an OCI image layout of these images, each under the one tag given with it.

    `include` as in `compose_docker_tar`. Packed layers stay packed.
    """
    composer = _Composer()
    composer.literal("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    descriptors = []
    blobs: dict[str, bytes] = {}
    for image, tag in images:
        manifest = _manifest(image)
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        blobs[image.config_digest] = image.config
        blobs[digest] = manifest
        descriptors.append(_image_descriptor(image, tag, digest, len(manifest)))
    for digest, content in blobs.items():
        composer.literal(f"blobs/sha256/{_hex(digest)}", content)
    for layer in _one_each(images, include, lambda layer: layer.blob_digest):
        composer.layer(f"blobs/sha256/{_hex(layer.blob_digest)}", layer)
    composer.literal("index.json", _json({"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": descriptors}))
    return composer.finish(index, images)


class _Composer:
    """Collects members; runs of literal bytes become one segment."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._literal = bytearray()
        self._layers: list[Layer] = []

    def literal(self, name: str, content: bytes) -> None:
        self._literal += tar_header(name, len(content)) + content + padding(len(content))

    def layer(self, name: str, layer: Layer) -> None:
        self._literal += tar_header(name, layer.size)
        self._segments += [bytes(self._literal), Span(layer.offset, layer.size)]
        self._literal = bytearray(padding(layer.size))
        self._layers.append(layer)

    def finish(self, index: ArchiveIndex, images: Sequence[tuple[ArchiveImage, str]]) -> LoadStream:
        segments = (*self._segments, bytes(self._literal) + END_OF_TAR)
        total = sum(segment.length if isinstance(segment, Span) else len(segment) for segment in segments)
        return LoadStream(tuple(tag for _, tag in images), tuple(self._layers), segments, total, index)


def _one_each(
    images: Iterable[tuple[ArchiveImage, str]], include: Collection[str] | None, key: Callable[[Layer], str]
) -> list[Layer]:
    """Return the layers to put in, one for each `key` (an archive may hold one content twice), in its order."""
    found: dict[str, Layer] = {}
    for layer in distinct_layers(layer for image, _ in images for layer in image.layers):
        if include is None or layer.diff_id in include:
            found.setdefault(key(layer), layer)
    return list(found.values())


def _manifest(image: ArchiveImage) -> bytes:
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": {"mediaType": _CONFIG_TYPE, "digest": image.config_digest, "size": len(image.config)},
            "layers": [
                {
                    "mediaType": f"{_LAYER_TYPE}+gzip" if layer.gzipped else _LAYER_TYPE,
                    "digest": layer.blob_digest,
                    "size": layer.size,
                }
                for layer in image.layers
            ],
        }
    )


def _image_descriptor(image: ArchiveImage, tag: str, digest: str, size: int) -> dict[str, object]:
    platform = {"architecture": image.architecture, "os": image.os}
    if image.variant:
        platform["variant"] = image.variant
    reference = full_reference(tag)
    return {
        "mediaType": _MANIFEST_TYPE,
        "digest": digest,
        "size": size,
        "annotations": {
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
        },
        "platform": platform,
    }


def full_reference(tag: str) -> str:
    """Return a tag with the registry that Docker implies, as containerd names images (`docker.io/library/x:1`)."""
    first, separator, _ = tag.partition("/")
    if not separator:
        tag = f"docker.io/library/{tag}"
    elif not ("." in first or ":" in first or first == "localhost"):
        tag = f"docker.io/{tag}"
    return tag if ":" in tag.rpartition("/")[2] else f"{tag}:latest"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
