"""The descriptors of an OCI image layout: sizes and digests that index and manifests state.

Source: OCI image specification 1.1, "Image Layout", "Image Index", "Image Manifest" and "Content Descriptors". An index
may name blobs that are not there (the manifests of other platforms), and hold attestations of a build beside its image.
"""

import re
from collections.abc import Callable, Mapping

from azaion_loader.archive_json import as_digest, as_list, as_object, as_text, parse_json
from azaion_loader.archive_model import Member
from azaion_loader.errors import ArchiveInvalid

_INDEX_TYPE = re.compile(r"application/vnd\.(oci\.image\.index\.v1|docker\.distribution\.manifest\.list\.v2)\+json")
_MANIFEST_TYPE = re.compile(r"application/vnd\.(oci\.image\.manifest\.v1|docker\.distribution\.manifest\.v2)\+json")


def check_descriptors(members: Mapping[str, Member], document: Callable[[Member], bytes]) -> None:
    """Follow index.json through the archive; every descriptor of a blob that is there must state its size.

    The blobs' digests are proved elsewhere, by their names. Raises ArchiveInvalid.
    """
    seen: set[str] = set()
    pending = ["index.json"]
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        content = as_object(parse_json(document(members[name]), name), name)
        if content.get("schemaVersion") != 2:
            raise ArchiveInvalid(f"The archive's member '{name}' is not version 2 of its form.")
        for value in _descriptors(content, name):
            target, media_type = _check_descriptor(as_object(value, name), name, members)
            if target is not None and (_INDEX_TYPE.fullmatch(media_type) or _MANIFEST_TYPE.fullmatch(media_type)):
                pending.append(target)


def _descriptors(content: dict[str, object], name: str) -> list[object]:
    """Return what an index (`manifests`) or a manifest (`config`, `layers`) points to."""
    if "manifests" in content:
        return as_list(content["manifests"], name)
    return [content.get("config"), *as_list(content.get("layers"), name)]


def _check_descriptor(
    descriptor: dict[str, object], name: str, members: Mapping[str, Member]
) -> tuple[str | None, str]:
    """Return the member that a descriptor points to (None when it is not there) and its media type."""
    digest = as_digest(descriptor.get("digest"), name)
    media_type = as_text(descriptor.get("mediaType"), name)
    size = descriptor.get("size")
    if type(size) is not int or size < 0:
        raise ArchiveInvalid(f"The archive's member '{name}' states no size for {digest}.")
    member = members.get(f"blobs/sha256/{digest.removeprefix('sha256:')}")
    if member is None:
        return None, media_type
    if member.size != size:
        raise ArchiveInvalid(f"The archive's member '{member.name}' has {member.size} bytes; '{name}' states {size}.")
    return member.name, media_type
