"""Remembers the parts of the hardware string as salted hashes, so that a changed part can be named later.

The file holds no serial number and no model name: a hash under a salt of this device tells only whether a part is
still the one that was seen first.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from azaion_loader.files import write_atomic

_HASH_CHARACTERS = 16
_FILE_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class PartMemory:
    """A part of the machine: its hash now, and when it was first seen on this device."""

    name: str
    hash: str
    first_seen_hash: str

    @property
    def changed(self) -> bool:
        """Whether it is another part than at first."""
        return self.hash != self.first_seen_hash


def remember_parts(path: Path, parts: Mapping[str, str]) -> list[PartMemory]:
    """Return each part beside what was first seen in its place; parts that are new are written to `path`.

    A file that can't be read as ours counts as none. Raises DiskFull or OSError when it can't be written.
    """
    known = _read(path)
    salt = known.get("salt") or secrets.token_hex(16)
    now = {name: _hash(salt, name, value) for name, value in parts.items()}
    first = {name: known.get(name) or hashed for name, hashed in now.items()}
    if {"salt": salt, **first} != known:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"salt": salt, **first}, sort_keys=True).encode())
    return [PartMemory(name, now[name], first[name]) for name in parts]


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_FILE_MAX_BYTES))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return {}
    return found


def _hash(salt: str, name: str, value: str) -> str:
    digest = hmac.new(salt.encode(), f"{name}\0{value}".encode(), hashlib.sha256).hexdigest()
    return digest[:_HASH_CHARACTERS]
