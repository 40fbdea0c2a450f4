"""What must survive a kill: the state of the last run, the tags of a half-done switch, the images that runs loaded.

Two JSON files in the loader's dot-directory, replaced whole (`files.write_atomic`), without secrets:

``unlock.json``
    ``{"format": 1, "run_id": str, "state": str, "error": str|null, "updated": float, "progress": {...},
    "switch": [{"tag": str, "before": str|null, "rollback": str}]}``; `switch` holds the tags that a run is moving
    from one image to another, and is empty before and after.
``images.json``
    ``{"format": 1, "loaded": [image id, ...], "newest_trusted": str|null}``: the ledger. `newest_trusted` is the
    creation time (RFC 3339) of the newest signed archive that this device has loaded.

A file that is not in this form (a disk that lost bytes) counts as absent and is said in the log: a device must not
refuse to start over it.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from loguru import logger

from azaion_loader.files import write_atomic
from azaion_loader.unlock_state import UnlockState

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TagMove:
    """One tag on its way from the image `before` (None: there was none) to a new one; `rollback` names `before` too."""

    tag: str
    before: str | None
    rollback: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read one entry; raises KeyError or TypeError on another form."""
        before = value["before"]
        if not isinstance(value["tag"], str) or not isinstance(value["rollback"], str):
            raise TypeError("tag and rollback are texts")
        if before is not None and not isinstance(before, str):
            raise TypeError("before is a text or null")
        return cls(value["tag"], before, value["rollback"])


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The last run as the journal knows it; `updated` is seconds since the epoch."""

    run_id: str
    state: UnlockState
    error: str | None = None
    updated: float = 0.0
    progress: dict[str, Any] = field(default_factory=dict)
    switch: tuple[TagMove, ...] = ()


@dataclass(frozen=True, slots=True)
class Ledger:
    """What earlier runs brought onto this device."""

    loaded: frozenset[str] = frozenset()
    newest_trusted: str | None = None


class UnlockJournal:
    """Reads and writes both files below `state_dir`."""

    def __init__(self, state_dir: Path) -> None:
        self._run_path = state_dir / "unlock.json"
        self._ledger_path = state_dir / "images.json"

    def read_run(self) -> RunRecord | None:
        """Return the last run's record, or None where there is none or it can't be read."""
        value = _read_json(self._run_path)
        if value is None:
            return None
        try:
            error = value["error"]
            return RunRecord(
                run_id=str(value["run_id"]),
                state=UnlockState(value["state"]),
                error=None if error is None else str(error),
                updated=float(value["updated"]),
                progress=dict(value["progress"]),
                switch=tuple(TagMove.from_json(move) for move in value["switch"]),
            )
        except (KeyError, TypeError, ValueError) as err:
            logger.warning("The journal {} is not in its form and is passed over: {}", self._run_path, err)
            return None

    def write_run(self, record: RunRecord) -> None:
        """Replace the record. Raises DiskFull or OSError."""
        record = replace(record, updated=time.time())
        value = {
            "format": 1,
            "run_id": record.run_id,
            "state": record.state.value,
            "error": record.error,
            "updated": record.updated,
            "progress": record.progress,
            "switch": [{"tag": m.tag, "before": m.before, "rollback": m.rollback} for m in record.switch],
        }
        write_atomic(self._run_path, json.dumps(value).encode())

    def read_ledger(self) -> Ledger:
        """Return the ledger; an empty one where there is none or it can't be read."""
        value = _read_json(self._ledger_path)
        if value is None:
            return Ledger()
        loaded, newest = value.get("loaded"), value.get("newest_trusted")
        if not isinstance(loaded, list) or not all(isinstance(entry, str) for entry in loaded):
            logger.warning("The ledger {} is not in its form and is passed over", self._ledger_path)
            return Ledger()
        return Ledger(frozenset(loaded), newest if isinstance(newest, str) else None)

    def write_ledger(self, ledger: Ledger) -> None:
        """Replace the ledger. Raises DiskFull or OSError."""
        value = {"format": 1, "loaded": sorted(ledger.loaded), "newest_trusted": ledger.newest_trusted}
        write_atomic(self._ledger_path, json.dumps(value).encode())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as stream:
            value = json.loads(stream.read(_MAX_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        logger.warning("{} can't be read and is passed over: {}", path, err)
        return None
    if not isinstance(value, dict) or value.get("format") != 1:
        logger.warning("{} is not of format 1 and is passed over", path)
        return None
    return value
