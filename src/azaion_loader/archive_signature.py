"""The signature beside an archive: which images it holds and when it was made, under Ed25519.

Format (see docs/formats.md): JSON `{"format": 1, "created": "<RFC 3339>", "images": {"<tag>": "sha256:<config
digest>"}, "signature": "<base64>"}`; signed are `azaion-archive-v1`, NUL, and the JSON of the other three fields with
sorted keys, without spaces, in UTF-8.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from azaion_loader.archive_json import DIGEST, parse_json
from azaion_loader.errors import ArchiveInvalid, ArchiveUntrusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAX_SIGNATURE_BYTES = 1 << 20

_CONTEXT = b"azaion-archive-v1\0"
_FORMAT = 1
_FIELDS = frozenset({"format", "created", "images", "signature"})
_CREATED = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,18})?([Zz]|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)


def moment_of(created: str) -> datetime:
    """Return the moment that a creation time (RFC 3339) names. Raises ValueError if there is none."""
    return datetime.fromisoformat(created.upper())


@dataclass(frozen=True, slots=True)
class ArchiveSignature:
    """A parsed signature: `created` as written (RFC 3339), `images` from tag to config digest, 64 bytes."""

    created: str
    images: Mapping[str, str]
    signature: bytes = field(repr=False)


def parse_signature(data: bytes) -> ArchiveSignature:
    """Return the signature in these bytes. Raises ArchiveUntrusted unless it is exactly of the format."""
    if len(data) > MAX_SIGNATURE_BYTES:
        raise ArchiveUntrusted("The archive's signature file is too large.")
    try:
        document = parse_json(data, "signature")
    except ArchiveInvalid as err:
        raise ArchiveUntrusted("The archive's signature file is not valid JSON.") from err
    if not isinstance(document, dict) or document.keys() != _FIELDS:
        raise ArchiveUntrusted("The archive's signature file does not have the expected fields.")
    if type(document["format"]) is not int or document["format"] != _FORMAT:
        raise ArchiveUntrusted("The archive's signature file is of an unknown format.")
    _check_created(document["created"])
    _check_images(document["images"])
    try:
        signature = base64.b64decode(document["signature"], validate=True)
    except (binascii.Error, TypeError, ValueError) as err:
        raise ArchiveUntrusted("The archive's signature is not base64.") from err
    if len(signature) != 64:
        raise ArchiveUntrusted("The archive's signature does not have 64 bytes.")
    return ArchiveSignature(document["created"], document["images"], signature)


def verify_signature(signature: ArchiveSignature, public_key_pem: bytes) -> None:
    """Raise ArchiveUntrusted unless the signature was made with the private half of this Ed25519 key."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  heavy, and only needed here

    key = _public_key(public_key_pem)
    try:
        key.verify(signature.signature, _message(signature.created, signature.images))
    except InvalidSignature as err:
        raise ArchiveUntrusted("The archive's signature was not made with the expected key.") from err


def sign_images(images: Mapping[str, str], created: str, private_key_pem: bytes) -> bytes:
    """Return the content of a signature file for these images (tag to config digest) made at `created`.

    Raises ArchiveUntrusted when the key is no Ed25519 key or the values are not of the format.
    """
    _check_created(created)
    _check_images(dict(images))
    signature = _private_key(private_key_pem).sign(_message(created, images))
    document = {
        "format": _FORMAT,
        "created": created,
        "images": dict(sorted(images.items())),
        "signature": base64.b64encode(signature).decode(),
    }
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _message(created: str, images: Mapping[str, str]) -> bytes:
    document = {"format": _FORMAT, "created": created, "images": dict(images)}
    return _CONTEXT + json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _check_created(created: object) -> None:
    if not isinstance(created, str) or not _CREATED.fullmatch(created):
        raise ArchiveUntrusted("The archive's signature has no creation time in RFC 3339.")
    try:
        moment_of(created)
    except ValueError as err:
        raise ArchiveUntrusted("The archive's signature has a creation time that does not exist.") from err


def _check_images(images: object) -> None:
    if not isinstance(images, dict) or not images:
        raise ArchiveUntrusted("The archive's signature names no images.")
    for tag, digest in images.items():
        if not tag or len(tag) > 512 or not tag.isprintable() or not isinstance(digest, str):
            raise ArchiveUntrusted("The archive's signature names its images in an unknown form.")
        if not DIGEST.fullmatch(digest):
            raise ArchiveUntrusted("The archive's signature holds something else in the place of a digest.")


def _public_key(pem: bytes) -> "Ed25519PublicKey":
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  heavy, and only needed here
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as err:
        raise ArchiveUntrusted("The public key for archives is not a PEM public key.") from err
    if not isinstance(key, Ed25519PublicKey):
        raise ArchiveUntrusted("The public key for archives is not an Ed25519 key.")
    return key


def _private_key(pem: bytes) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  heavy, and only needed here
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise ArchiveUntrusted("The signing key is not an unencrypted PEM private key.") from err
    if not isinstance(key, Ed25519PrivateKey):
        raise ArchiveUntrusted("The signing key is not an Ed25519 key.")
    return key
