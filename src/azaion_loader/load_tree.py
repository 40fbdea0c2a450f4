"""In which steps the engine is given its images: shared layers first and once, then each image for itself.

Pure: it knows the archive's index and what the engine holds, nothing else. The layers that several images build on
become *base steps*: synthetic images of our own that hold exactly the shared chain, so that the steps after them can
leave it out and run side by side.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from azaion_loader.archive_model import ArchiveImage, ArchiveIndex, Layer, distinct_layers
from azaion_loader.load_plan import LoadStream, compose_docker_tar, compose_oci_tar, held_layers

Shape = Literal["docker", "oci"]

_COMPOSE = {"docker": compose_docker_tar, "oci": compose_oci_tar}

# A step of its own costs a call of the client and a wait: less than this loads faster with each image that needs it.
MIN_SHARED_BYTES = 8 << 20
_CREATED = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class LoadStep:
    """One stream for the engine.

    `images` are those it brings, with their tags. `is_base` says that the image is a synthetic one, needed only until
    the run is over. `after` is the number of the step whose image has to stand before this one is finished.
    """

    images: tuple[tuple[ArchiveImage, str], ...]
    stream: LoadStream
    is_base: bool = False
    after: int | None = None


def whole_step(
    index: ArchiveIndex,
    images: Sequence[tuple[ArchiveImage, str]],
    chains: Sequence[Sequence[str]] = (),
    shape: Shape = "docker",
) -> tuple[LoadStep, ...]:
    """Return one step with all images, without the layers that `chains` hold: nothing, if there are no images.

    Without `chains` the stream is whole: every engine takes it. A gzipped archive, which is read forward only, is
    always given in one step.
    """
    if not images:
        return ()
    include = {diff_id for image, _ in images for diff_id in image.diff_ids[held_layers(image.diff_ids, chains) :]}
    return (LoadStep(tuple(images), _COMPOSE[shape](index, images, include)),)


def branching_steps(
    index: ArchiveIndex,
    images: Sequence[tuple[ArchiveImage, str]],
    chains: Sequence[Sequence[str]],
    shape: Shape,
    tag_of: Callable[[ArchiveImage], str],
) -> tuple[LoadStep, ...]:
    """Return a step for each image, behind base steps for the layers that several of them build on.

    `chains` are the layers of the engine's images, base first; `tag_of` names a base step's image. A step stands
    behind the one it builds on, and among its equals the longest comes first, so that no worker is left alone at the
    end.
    """
    return tuple(_Brancher(index, chains, shape, tag_of).branch(list(images)))


class _Brancher:
    def __init__(
        self,
        index: ArchiveIndex,
        chains: Sequence[Sequence[str]],
        shape: Shape,
        tag_of: Callable[[ArchiveImage], str],
    ) -> None:
        self._index = index
        self._chains = chains
        self._compose = _COMPOSE[shape]
        self._tag_of = tag_of
        self._steps: list[LoadStep] = []

    def branch(self, images: list[tuple[ArchiveImage, str]]) -> list[LoadStep]:
        if images:
            self._grow(images, 0, None)
        return self._steps

    def _grow(self, images: list[tuple[ArchiveImage, str]], given: int, after: int | None) -> None:
        """Add the steps of images that share their first `given` layers, which the step `after` brings."""
        if len(images) == 1:
            self._add(images[0], given, after)
            return
        shared = _shared_layers([image.diff_ids for image, _ in images])
        base = _base_image(images[0][0], shared)
        missing = self._missing(base, given)
        if _size(base, missing) >= MIN_SHARED_BYTES:
            after = self._add((base, self._tag_of(base)), given, after, is_base=True)
            given = shared
        groups: dict[str | None, list[tuple[ArchiveImage, str]]] = {}
        for image, tag in images:
            following = image.diff_ids[shared] if shared < len(image.diff_ids) else None
            groups.setdefault(following, []).append((image, tag))
        # An image that ends where the others part, and its likes: nothing more is shared among them.
        for image, tag in groups.pop(None, []):
            self._add((image, tag), given, after)
        for group in sorted(groups.values(), key=lambda group: -sum(self._left(image, given) for image, _ in group)):
            self._grow(group, given, after)

    def _add(self, image: tuple[ArchiveImage, str], given: int, after: int | None, *, is_base: bool = False) -> int:
        stream = self._compose(self._index, [image], self._missing(image[0], given))
        self._steps.append(LoadStep((image,), stream, is_base, after))
        return len(self._steps) - 1

    def _left(self, image: ArchiveImage, given: int) -> int:
        return _size(image, self._missing(image, given))

    def _missing(self, image: ArchiveImage, given: int) -> frozenset[str]:
        return frozenset(image.diff_ids[max(given, held_layers(image.diff_ids, self._chains)) :])


def _shared_layers(chains: Sequence[Sequence[str]]) -> int:
    first = chains[0]
    return min(held_layers(first, [chain]) for chain in chains)


def _size(image: ArchiveImage, layers: Collection[str]) -> int:
    return sum(layer.size for layer in distinct_layers(image.layers) if layer.diff_id in layers)


def _base_image(image: ArchiveImage, length: int) -> ArchiveImage:
    """Return a synthetic image of the first `length` layers; the same layers always give the same image."""
    diff_ids = image.diff_ids[:length]
    config: dict[str, object] = {
        "architecture": image.architecture,
        "config": {},
        "created": _CREATED,
        "os": image.os,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    if image.variant:
        config["variant"] = image.variant
    document = json.dumps(config, separators=(",", ":"), sort_keys=True).encode()
    layers: tuple[Layer, ...] = image.layers[:length]
    return ArchiveImage(
        tags=(),
        config_digest=f"sha256:{hashlib.sha256(document).hexdigest()}",
        config=document,
        diff_ids=diff_ids,
        layers=layers,
        os=image.os,
        architecture=image.architecture,
        variant=image.variant,
        created=_CREATED,
    )
