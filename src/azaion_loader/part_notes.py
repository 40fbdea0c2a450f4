"""What this device knows about each cached part: the note beside it, and whether the name was seen in format 1.

One small JSON file per resource, `<state_dir>/notes/<folder>/<name>.json`. A note outlives nothing that it doesn't
describe: it goes when its part goes, while `seen_in_format_1` stays, so that metadata taken from an object
later is noticed (docs/formats.md).
"""

import json
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from azaion_loader import files

_MAX_NOTE_BYTES = 16 * 1024
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PartNote:
    """What a proved part is: `size` in bytes, digests in lower-case hex, `mac` None where the object had none."""

    head_sha256: str
    size: int
    etag: str
    sha256: str
    mac: str | None


@dataclass(frozen=True, slots=True)
class NameMemory:
    """All that is remembered about one resource's name."""

    part: PartNote | None = None
    seen_in_format_1: bool = False


class PartNotes:
    """The notes of one state directory. Callers hold the resource's lock while they write."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "notes"

    def path(self, folder: str, name: str) -> Path:
        """Return where the note of a resource lies."""
        return self._directory / folder / f"{name}.json"

    def read(self, folder: str, name: str) -> NameMemory:
        """Return what is known about a resource.

        A missing note knows nothing. A damaged one describes no part either, but counts as seen in format 1: whoever
        can damage a note must not gain by it.
        """
        try:
            with self.path(folder, name).open("rb") as stream:
                data = stream.read(_MAX_NOTE_BYTES + 1)
        except FileNotFoundError:
            return NameMemory()
        return _parse(data) or NameMemory(seen_in_format_1=True)

    def remember_part(self, folder: str, name: str, part: PartNote) -> None:
        """Note the part that now lies in the cache; one with a MAC also marks the name. Raises DiskFull, OSError."""
        seen = part.mac is not None or self.read(folder, name).seen_in_format_1
        self._write(folder, name, NameMemory(part, seen))

    def forget_part(self, folder: str, name: str) -> None:
        """Drop the note of a part that is gone; the mark of the name stays. Raises DiskFull, OSError."""
        memory = self.read(folder, name)
        if memory.part is None:
            return
        if memory.seen_in_format_1:
            self._write(folder, name, replace(memory, part=None))
        else:
            self.path(folder, name).unlink(missing_ok=True)

    def touch(self, folder: str, name: str) -> None:
        """Mark the part as just used."""
        now = time.time()
        try:
            os.utime(self.path(folder, name), (now, now))
        except FileNotFoundError:
            return

    def last_used_s(self, folder: str, name: str) -> float | None:
        """Return when the part was last used, in seconds since the epoch; None without a note."""
        try:
            return self.path(folder, name).stat().st_mtime
        except FileNotFoundError:
            return None

    def _write(self, folder: str, name: str, memory: NameMemory) -> None:
        content = {"part": asdict(memory.part) if memory.part else None, "seen_in_format_1": memory.seen_in_format_1}
        files.write_atomic(self.path(folder, name), json.dumps(content).encode())


def _parse(data: bytes) -> NameMemory | None:
    """Return the memory in a note's bytes, or None where they are not a note."""
    if len(data) > _MAX_NOTE_BYTES:
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("seen_in_format_1"), bool) or "part" not in content:
        return None
    part = content["part"]
    if part is not None and not _describes_part(part):
        return None
    return NameMemory(PartNote(**part) if part is not None else None, content["seen_in_format_1"])


def _describes_part(part: object) -> bool:
    """Say whether a value of a note's JSON has the fields of a PartNote, each in its form."""
    if not isinstance(part, dict) or set(part) != {"head_sha256", "size", "etag", "sha256", "mac"}:
        return False
    digests = [part["head_sha256"], part["sha256"], *([] if part["mac"] is None else [part["mac"]])]
    return (
        all(isinstance(digest, str) and _HEX_DIGEST.fullmatch(digest) for digest in digests)
        and isinstance(part["etag"], str)
        and type(part["size"]) is int
        and part["size"] >= 0
    )
