"""Which bytes of a partly downloaded object are on disk, and the file that remembers it over a kill.

The state stands beside the part file as JSON::

    {"format": 1, "bucket": …, "key": …, "etag": …, "size": …, "boot": "<boot id>",
     "written": [[start, end], …], "synced": [[start, end], …]}

`written` bytes were handed to the kernel: they survive the death of the process, not of the machine, so they count
only while the boot id is the same. `synced` bytes were flushed with fdatasync before they were listed, and count
always. So a state costs a small write after each part, and the disk is flushed only now and then.
"""

import json
import os
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE_LIMIT_BYTES = 1 << 20
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Pair = tuple[int, int]


class Ranges:
    """A set of whole numbers as sorted, disjoint, not touching half-open ranges."""

    def __init__(self, pairs: list[Pair] | None = None) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in pairs or []:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add start ≤ n < end; an empty range adds nothing."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def pairs(self) -> list[Pair]:
        """Return the ranges in order."""
        return list(zip(self._starts, self._ends, strict=True))

    def missing(self, size: int) -> list[Pair]:
        """Return what of 0 ≤ n < size is not in the set."""
        edges = [0, *(edge for pair in self.pairs() for edge in pair), size]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    def total(self) -> int:
        """Return how many numbers are in the set."""
        return sum(self._ends) - sum(self._starts)

    def prefix(self) -> int:
        """Return the first number from 0 on that is not in the set."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0


@dataclass(slots=True)
class PartState:
    """What a state file says, for one object."""

    bucket: str
    key: str
    etag: str
    size: int
    written: list[Pair] = field(default_factory=list)
    synced: list[Pair] = field(default_factory=list)

    def save(self, path: Path, *, durable: bool) -> None:
        """Replace the file in one step. `durable`: flushed, too; needed only where `synced` grew.

        Raises OSError.
        """
        document = {
            "format": 1, "bucket": self.bucket, "key": self.key, "etag": self.etag, "size": self.size,
            "boot": boot_id(), "written": self.written, "synced": self.synced,
        }  # fmt: skip
        aside = path.with_name(path.name + (".synced" if durable else ".next"))
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(document).encode())
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        aside.replace(path)


def load_ranges(path: Path, wanted: PartState, part_bytes: int) -> list[Pair]:
    """Return the ranges that can be trusted in a part file of `part_bytes` bytes.

    Empty when the state is missing, unreadable or of another object: the download then starts clean.
    """
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(STATE_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return []
    identity = {"format": 1, "bucket": wanted.bucket, "key": wanted.key, "etag": wanted.etag, "size": wanted.size}
    if not isinstance(document, dict) or any(document.get(name) != value for name, value in identity.items()):
        return []
    same_boot = bool(boot_id()) and document.get("boot") == boot_id()
    pairs: Any = document.get("written" if same_boot else "synced")
    return [(a, b) for a, b in pairs] if _sound(pairs, min(wanted.size, part_bytes)) else []


def state_path(part: Path) -> Path:
    """Return where the state of a part file stands."""
    return part.with_name(part.name + ".json")


def discard(part: Path) -> None:
    """Remove a part file and its state."""
    discard_state(part)
    part.unlink(missing_ok=True)


def discard_state(part: Path) -> None:
    """Remove the state of a part file and what a killed save left."""
    state = state_path(part)
    for path in (state, state.with_name(state.name + ".next"), state.with_name(state.name + ".synced")):
        path.unlink(missing_ok=True)


def boot_id() -> str:
    """Return what the kernel drew at its start; empty where it can't be read."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _sound(pairs: object, limit: int) -> bool:
    if not isinstance(pairs, list):
        return False
    reached = -1
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(edge) is int for edge in pair)):
            return False
        if not reached < pair[0] < pair[1] <= limit:
            return False
        reached = pair[1]
    return True
