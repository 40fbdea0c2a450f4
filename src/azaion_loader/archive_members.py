"""From the members of a tar to images: which names an archive may hold, and what its documents say.

Sources: the layouts that `docker save` (moby `image/tarexport/save.go`, 1.10 to 24 and 25 up), `podman save` and skopeo
(containers/image `docker/internal/tarfile/writer.go`) write, and the OCI image layout 1.0.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Protocol

from azaion_loader.archive_json import as_digest, as_list, as_object, as_text, parse_json
from azaion_loader.archive_model import ArchiveImage, Layer, Member
from azaion_loader.archive_oci import check_descriptors
from azaion_loader.errors import ArchiveIncomplete, ArchiveInvalid

_HEX = "[0-9a-f]{64}"
_DIRECTORY = re.compile(rf"blobs|blobs/sha256|{_HEX}")
_BLOB = re.compile(rf"blobs/sha256/({_HEX})")
_CONFIG = re.compile(rf"(?:blobs/sha256/)?({_HEX})(?:\.json)?")
_OLD_CONFIG = re.compile(rf"({_HEX})\.json")
_OLD_LAYER = re.compile(rf"{_HEX}/layer\.tar|{_HEX}\.tar")
_OLD_LINK = re.compile(rf"{_HEX}/layer\.tar")
_V1_CONFIG = re.compile(rf"({_HEX})/json")
_V1_VERSION = re.compile(rf"{_HEX}/VERSION")
_DOCUMENTS = frozenset({"manifest.json", "repositories", "index.json", "oci-layout"})


class Contents(Protocol):
    """The bytes behind the members."""

    def document(self, member: Member) -> bytes:
        """Return the bytes of a description. Raises ArchiveInvalid when it is too large for one."""

    def sha256(self, member: Member) -> str:
        """Return the hex SHA-256 of a member's bytes."""


def is_document(name: str) -> bool:
    """Whether a member of this name is a description that has no digest in its name."""
    return name in _DOCUMENTS or _V1_CONFIG.fullmatch(name) is not None or _V1_VERSION.fullmatch(name) is not None


def may_be_layer(name: str) -> bool:
    """Whether a member of this name may be a layer."""
    return _OLD_LAYER.fullmatch(name) is not None or _BLOB.fullmatch(name) is not None


def read_images(
    members: Mapping[str, Member], contents: Contents
) -> tuple[tuple[ArchiveImage, ...], Literal["docker", "oci"]]:
    """Return the images and the layout; prove every member except the layers of the images.

    Raises ArchiveInvalid for what the layouts don't hold or for a digest that does not fit, ArchiveIncomplete for a
    missing manifest, config or layer.
    """
    _check_names(members)
    manifest = members.get("manifest.json")
    if manifest is None or manifest.kind != "file":
        raise ArchiveIncomplete("The archive holds no manifest.json, so it was not written by 'docker save'.")
    entries = as_list(parse_json(contents.document(manifest), "manifest.json"), "manifest.json")
    if not entries:
        raise ArchiveIncomplete("The archive's manifest.json names no images.")
    images = _merge([_read_image(as_object(entry, "manifest.json"), members, contents) for entry in entries])
    layers = {layer.name for image in images for layer in image.layers}
    _check_one_diff_id(images)
    for member in members.values():
        if member.kind == "file" and member.name not in layers:
            _prove_member(member, contents)
        elif member.kind == "link" and member.target not in layers:
            raise ArchiveInvalid(f"The archive's member '{member.name}' is a link to something other than a layer.")
    if "index.json" in members:
        check_descriptors(members, contents.document)
    elif "oci-layout" in members:
        raise ArchiveInvalid("The archive holds an oci-layout, but no index.json.")
    return images, "oci" if "oci-layout" in members else "docker"


def _check_names(members: Mapping[str, Member]) -> None:
    for member in members.values():
        name = member.name
        if member.kind == "file":
            known = is_document(name) or may_be_layer(name) or _OLD_CONFIG.fullmatch(name) is not None
        else:
            known = (_DIRECTORY if member.kind == "directory" else _OLD_LINK).fullmatch(name) is not None
        if not known:
            raise ArchiveInvalid(f"The archive holds '{name[:200]}', which is not part of an image archive.")


def _prove_member(member: Member, contents: Contents) -> None:
    """Prove a member that is not a layer: by the digest in its name, or by its form."""
    name = member.name
    if digest := _BLOB.fullmatch(name) or _OLD_CONFIG.fullmatch(name):
        if contents.sha256(member) != digest[1]:
            raise ArchiveInvalid(f"The archive's member '{name}' is damaged: its bytes don't fit its name.")
    elif owner := _V1_CONFIG.fullmatch(name):
        if as_object(parse_json(contents.document(member), name), name).get("id") != owner[1]:
            raise ArchiveInvalid(f"The archive's member '{name}' describes another layer.")
    elif _V1_VERSION.fullmatch(name):
        if contents.document(member) != b"1.0":
            raise ArchiveInvalid(f"The archive's member '{name}' is not a version of this layout.")
    elif name == "repositories":
        _check_repositories(as_object(parse_json(contents.document(member), name), name))
    elif name == "oci-layout":
        layout = as_object(parse_json(contents.document(member), name), name)
        if layout.get("imageLayoutVersion") != "1.0.0":
            raise ArchiveInvalid("The archive's oci-layout is not version 1.0.0.")
    elif name not in _DOCUMENTS:
        raise ArchiveInvalid(f"The archive holds the layer '{name}', which no image uses.")


def _check_repositories(repositories: dict[str, object]) -> None:
    for repository, tags in repositories.items():
        as_text(repository, "repositories")
        for tag, layer in as_object(tags, "repositories").items():
            as_text(tag, "repositories")
            if not isinstance(layer, str) or not re.fullmatch(_HEX, layer):
                raise ArchiveInvalid("The archive's member 'repositories' does not have the expected form.")


def _read_image(entry: dict[str, object], members: Mapping[str, Member], contents: Contents) -> ArchiveImage:
    config_name = as_text(entry.get("Config"), "manifest.json")
    named = _CONFIG.fullmatch(config_name)
    if named is None:
        raise ArchiveInvalid(f"The archive's manifest.json names the config '{config_name[:99]}', without a digest.")
    member = members.get(config_name)
    if member is None or member.kind != "file":
        raise ArchiveIncomplete(f"The archive's manifest.json names the config '{config_name}', which is not there.")
    data = contents.document(member)
    if contents.sha256(member) != named[1]:
        raise ArchiveInvalid(f"The archive's config '{config_name}' is damaged: its bytes don't fit its name.")
    config = as_object(parse_json(data, config_name), config_name)
    rootfs = as_object(config.get("rootfs"), config_name)
    diff_ids = tuple(as_digest(value, config_name) for value in as_list(rootfs.get("diff_ids"), config_name))
    names = [as_text(value, "manifest.json") for value in as_list(entry.get("Layers"), "manifest.json")]
    if rootfs.get("type") != "layers" or len(names) != len(diff_ids):
        raise ArchiveInvalid(f"The archive's config '{config_name}' does not fit the layers of its image.")
    tags = tuple(as_text(tag, "manifest.json") for tag in as_list(entry.get("RepoTags"), "manifest.json"))
    variant, created = config.get("variant"), config.get("created")
    return ArchiveImage(
        tags=tags,
        config_digest=f"sha256:{named[1]}",
        config=data,
        diff_ids=diff_ids,
        layers=tuple(_layer(name, diff_id, members) for name, diff_id in zip(names, diff_ids, strict=True)),
        os=as_text(config.get("os"), config_name),
        architecture=as_text(config.get("architecture"), config_name),
        variant=as_text(variant, config_name) if variant else "",
        created=as_text(created, config_name) if created else "",
    )


def _layer(name: str, diff_id: str, members: Mapping[str, Member]) -> Layer:
    member = members.get(name)
    if member is not None and member.target is not None:
        member = members.get(member.target)
    if member is None or member.kind != "file":
        raise ArchiveIncomplete(f"The archive's manifest.json names the layer '{name[:200]}', which is not there.")
    if not may_be_layer(member.name):
        raise ArchiveInvalid(f"The archive's manifest.json names '{name[:200]}' as a layer, which is none.")
    blob = _BLOB.fullmatch(member.name)
    return Layer(member.name, member.offset, member.size, diff_id, f"sha256:{blob[1]}" if blob else diff_id)


def _check_one_diff_id(images: tuple[ArchiveImage, ...]) -> None:
    """One file can't unpack to two digests; one digest may stand in two files."""
    diff_ids: dict[str, str] = {}
    for layer in (layer for image in images for layer in image.layers):
        if diff_ids.setdefault(layer.name, layer.diff_id) != layer.diff_id:
            raise ArchiveInvalid(f"The archive's layer '{layer.name}' stands for two different digests.")


def _merge(images: list[ArchiveImage]) -> tuple[ArchiveImage, ...]:
    """Join entries of the same config, which some writers give once per tag; refuse a tag of two images."""
    merged: dict[str, ArchiveImage] = {}
    for image in images:
        known = merged.get(image.config_digest)
        tags = dict.fromkeys((*known.tags, *image.tags) if known else image.tags)
        merged[image.config_digest] = replace(known or image, tags=tuple(tags))
    owners: dict[str, str] = {}
    for image in merged.values():
        for tag in image.tags:
            if owners.setdefault(tag, image.config_digest) != image.config_digest:
                raise ArchiveInvalid(f"The archive gives the tag '{tag[:200]}' to two images.")
    return tuple(merged.values())
