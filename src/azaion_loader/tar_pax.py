"""Names and extension records of a tar: pax (POSIX.1-2001, "pax Extended Header") and GNU long names."""

import re

from azaion_loader.errors import ArchiveInvalid

MAX_EXTENSION_BYTES = 64 * 1024
MAX_NAME_CHARACTERS = 4096

_RECORD_LENGTH = re.compile(rb"([1-9][0-9]{0,5}) ")
_TIME = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,9})?")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_TEXT_KEYS = frozenset({"path", "linkpath", "uname", "gname", "comment", "charset", "hdrcharset"})
_TEXT_PREFIXES = ("SCHILY.", "LIBARCHIVE.")
_TIME_KEYS = frozenset({"mtime", "atime", "ctime", "LIBARCHIVE.creationtime"})
_NUMBER_KEYS = frozenset({"size", "uid", "gid"})


def _bad(offset: int, why: str) -> ArchiveInvalid:
    return ArchiveInvalid(f"The archive is damaged: {why} in the tar extension at byte {offset}.")


def _text(data: bytes, offset: int) -> str:
    """Decode printable text: a garbled block must not pass as somebody's comment."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise _bad(offset, "text is not UTF-8") from err
    if not text.isprintable():
        raise _bad(offset, "text is not printable")
    return text


def parse_long_name(data: bytes, offset: int) -> str:
    """Return the name in a GNU `L` or `K` member: text with one NUL at its end. Raises ArchiveInvalid."""
    if len(data) < 2 or data[-1] != 0:
        raise _bad(offset, "a long name has no end")
    return _text(data[:-1], offset)


def parse_pax_records(data: bytes, offset: int) -> dict[str, str]:
    """Return the records of a pax header; `offset` names its place in messages.

    Raises ArchiveInvalid for a malformed, repeated or unknown record: an unknown one could change what the member
    means (`GNU.sparse.*` does).
    """
    records: dict[str, str] = {}
    position = 0
    while position < len(data):
        match = _RECORD_LENGTH.match(data, position)
        if match is None:
            raise _bad(offset, "a record has no length")
        end = position + int(match[1])
        if end > len(data) or end <= match.end() or data[end - 1] != 0x0A:
            raise _bad(offset, "a record's length does not fit")
        key, separator, value = _text(data[match.end() : end - 1], offset).partition("=")
        if not separator or not key or key in records:
            raise _bad(offset, "a record is malformed or repeated")
        _check_record(key, value, offset)
        records[key] = value
        position = end
    return records


def _check_record(key: str, value: str, offset: int) -> None:
    if key in _TIME_KEYS:
        known = _TIME.fullmatch(value) is not None
    elif key in _NUMBER_KEYS:
        known = _NUMBER.fullmatch(value) is not None
    else:
        known = key in _TEXT_KEYS or key.startswith(_TEXT_PREFIXES)
    if not known:
        raise _bad(offset, f"the record '{key[:80]}' is unknown or malformed")


def member_name(name: str) -> str:
    """Return `name` if it stays inside the archive. Raises ArchiveInvalid."""
    parts = name.split("/")
    if not name or len(name) > MAX_NAME_CHARACTERS or any(part in {"", ".", ".."} for part in parts):
        raise ArchiveInvalid(f"The archive's member '{name[:200]}' has a name that leaves the archive.")
    return name


def link_target(name: str, target: str, symbolic: bool) -> str:
    """Return the member that a link points to.

    A symbolic link's target is relative to the directory of the link, a hard link's to the root. Raises ArchiveInvalid
    when it leaves the archive.
    """
    if not symbolic:
        return member_name(target)
    parts = name.split("/")[:-1]
    for part in target.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part in {"", ".", ".."}:
            raise ArchiveInvalid(f"The archive's member '{name[:200]}' is a link that leaves the archive.")
        else:
            parts.append(part)
    return member_name("/".join(parts))
