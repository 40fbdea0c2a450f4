"""What a run has to do, decided from the archive's index and the engine's images alone.

Images are loaded under a *staging tag* of their own content, so the tags that devices run from change only when
every image stands proved in the engine. A staging tag left by a killed run names an image that need not be sent
again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from azaion_loader.archive_model import ArchiveImage
from azaion_loader.docker_answers import ImageInfo
from azaion_loader.errors import ArchiveIncomplete, ArchiveInvalid, WrongPlatform
from azaion_loader.required_images import short_tag

STAGING_REPOSITORY = "azaion-loader/staged"
ROLLBACK_REPOSITORY = "azaion-loader/rollback"

# What a container started from the image would notice; the rest of Docker's `Config` is left to the engine's taste.
_CONFIG_FIELDS = (
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Labels",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
)


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image of the archive and where it stands.

    `tags` are the names it is to have, `staged` its staging tag, `source` a reference under which the engine holds
    it already (None: it has to be loaded), `standing` the tags that name it already.
    """

    image: ArchiveImage
    tags: tuple[str, ...]
    staged: str
    source: str | None
    standing: frozenset[str]


@dataclass(frozen=True, slots=True)
class UnlockPlan:
    """All images of the archive, in its order; `before` maps each tag that exists to the image ID it names now."""

    images: tuple[PlannedImage, ...]
    before: Mapping[str, str]

    @property
    def to_load(self) -> tuple[PlannedImage, ...]:
        """The images that the engine lacks."""
        return tuple(planned for planned in self.images if planned.source is None)

    @property
    def moves(self) -> tuple[tuple[str, PlannedImage], ...]:
        """The tags to set, with the image that each gets."""
        return tuple((tag, p) for p in self.images for tag in p.tags if tag not in p.standing)


def tagged_images(images: Sequence[ArchiveImage]) -> dict[str, ArchiveImage]:
    """Return the archive's images by tag, in the short form of names; images without a tag are left out.

    Raises ArchiveInvalid if two images claim one tag.
    """
    found: dict[str, ArchiveImage] = {}
    for image in images:
        for tag in image.tags:
            name = short_tag(tag)
            if found.setdefault(name, image).config_digest != image.config_digest:
                raise ArchiveInvalid(f"The archive holds two images under the name {name}.")
    return found


def check_required(tagged: Mapping[str, ArchiveImage], required: Iterable[str]) -> None:
    """Raise ArchiveIncomplete, naming them, if required tags are not in the archive."""
    missing = [tag for tag in required if tag not in tagged]
    if missing:
        raise ArchiveIncomplete(f"The archive lacks required images: {', '.join(missing)}.")


def check_platform(tagged: Mapping[str, ArchiveImage], system: str, architecture: str) -> None:
    """Raise WrongPlatform unless every image is made for the engine's platform (GOOS and GOARCH names)."""
    for tag, image in tagged.items():
        if (image.os, image.architecture) != (system, architecture):
            raise WrongPlatform(
                f"The image {tag} is made for {image.os}/{image.architecture}; "
                f"this engine runs {system}/{architecture}."
            )


def staging_tag(image: ArchiveImage) -> str:
    """Return the staging tag of an image: its content names it."""
    return f"{STAGING_REPOSITORY}:{image.config_digest.removeprefix('sha256:')}"


def is_same(image: ArchiveImage, info: ImageInfo, store: str) -> bool:
    """Say whether the engine's image is this one.

    Image IDs are config digests, except on the containerd store, where they are manifest digests: there the layers,
    the platform and what a container would notice of the config are compared.
    """
    if store != "containerd":
        return info.id == image.config_digest
    if info.layers != image.diff_ids or (info.os, info.architecture) != (image.os, image.architecture):
        return False
    wanted = json.loads(image.config).get("config") or {}
    return all(_plain(wanted.get(field)) == _plain(info.config.get(field)) for field in _CONFIG_FIELDS)


def make_plan(tagged: Mapping[str, ArchiveImage], engine: Sequence[ImageInfo], store: str) -> UnlockPlan:
    """Work out which images have to be loaded and which tags have to move."""
    by_tag = {short_tag(tag): info for info in engine for tag in info.tags}
    planned: dict[str, PlannedImage] = {}
    for image in tagged.values():
        if image.config_digest in planned:
            continue
        tags = tuple(tag for tag, owner in tagged.items() if owner.config_digest == image.config_digest)
        same = [info for info in engine if is_same(image, info, store)]
        planned[image.config_digest] = PlannedImage(
            image=image,
            tags=tags,
            staged=staging_tag(image),
            source=same[0].id if same else None,
            standing=frozenset(tag for tag in tags if tag in by_tag and is_same(image, by_tag[tag], store)),
        )
    before = {tag: by_tag[tag].id for tag in tagged if tag in by_tag}
    return UnlockPlan(tuple(planned.values()), before)


def staged_for(plan: UnlockPlan, engine: Sequence[ImageInfo]) -> list[str]:
    """Return the staging tags that an earlier run left and this one can use: of its images and of their shared layers.

    An image of shared layers shows by its chain: that of a planned image begins with it.
    """
    chains = [planned.image.diff_ids for planned in plan.images]
    staged = {planned.staged for planned in plan.images}
    found = []
    for info in engine:
        useful = any(info.layers == chain[: len(info.layers)] for chain in chains)
        names = [short_tag(tag) for tag in info.tags]
        found += [tag for tag in names if tag in staged or (useful and tag.startswith(f"{STAGING_REPOSITORY}:"))]
    return found


def left_over_tags(engine: Sequence[ImageInfo], repository: str, keep: Iterable[str]) -> list[str]:
    """Return the tags of `repository` (staging or rollback) that are in the engine, except those to `keep`."""
    wanted = set(keep)
    names = (short_tag(tag) for info in engine for tag in info.tags)
    return sorted(tag for tag in names if tag.startswith(f"{repository}:") and tag not in wanted)


def superseded(old: Iterable[ImageInfo], used: Iterable[str]) -> list[str]:
    """Return the IDs of images that an earlier run loaded and that no tag and no container uses any more."""
    kept = set(used)
    return sorted({info.id for info in old if not info.tags and info.id not in kept})


def _plain(value: object) -> object:
    """Fold the ways in which engines write "nothing" into one."""
    return None if value in (None, "", [], {}) else value
