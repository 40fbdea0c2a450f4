"""Strict JSON for the documents inside an archive."""

import json
import re

from azaion_loader.errors import ArchiveInvalid

MAX_DOCUMENT_BYTES = 4 << 20
MAX_DEPTH = 64

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse repeated keys: readers disagree about which one counts."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("repeated key")
    return document


def _no_constant(text: str) -> object:
    raise ValueError(text)


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError("too deep")


def parse_json(data: bytes, name: str) -> object:
    """Return the document `data` of member `name`.

    Raises ArchiveInvalid unless it is UTF-8, RFC 8259 JSON without repeated keys, and bounded in size and depth.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ArchiveInvalid(f"The archive's member '{name}' is too large for a description.")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        _check_depth(document)
    except (ValueError, RecursionError) as err:
        raise ArchiveInvalid(f"The archive's member '{name}' is not valid JSON.") from err
    return document


def as_object(value: object, name: str) -> dict[str, object]:
    """Return `value` if it is a JSON object. Raises ArchiveInvalid."""
    if not isinstance(value, dict):
        raise ArchiveInvalid(f"The archive's member '{name}' does not have the expected form.")
    return value


def as_list(value: object, name: str) -> list[object]:
    """Return `value` if it is a JSON array; absent and null count as empty. Raises ArchiveInvalid."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ArchiveInvalid(f"The archive's member '{name}' does not have the expected form.")
    return value


def as_text(value: object, name: str) -> str:
    """Return `value` if it is a printable text of at most 4096 characters. Raises ArchiveInvalid."""
    if not isinstance(value, str) or not value or len(value) > 4096 or not value.isprintable():
        raise ArchiveInvalid(f"The archive's member '{name}' does not have the expected form.")
    return value


def as_digest(value: object, name: str) -> str:
    """Return `value` if it is a SHA-256 digest, `sha256:` and 64 hex digits. Raises ArchiveInvalid."""
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise ArchiveInvalid(f"The archive's member '{name}' holds something else in the place of a digest.")
    return value
