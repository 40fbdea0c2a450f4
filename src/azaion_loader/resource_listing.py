"""What a folder holds: parts cached on this device beside the names that the Resource API lists."""

import contextlib
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from azaion_loader import names
from azaion_loader.errors import InvalidName, LoaderError, ResourceNotFound

_SMALL_SUFFIX, _BIG_SUFFIX = ".small", ".big"
_LISTED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class ListedResource:
    """One resource; `published` is None where the Resource API could not be asked."""

    name: str
    cached_bytes: int | None
    published: bool | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A folder; `note` says why the Resource API's names are not in it, where they are not."""

    folder: str
    resources: tuple[ListedResource, ...]
    note: str | None


def list_folder(storage_dir: Path, folder: str, ask: Callable[[], list[str]] | None) -> Listing:
    """Return what is cached in `folder` and what `ask` lists; None stands for nobody logged in. Raises InvalidName."""
    names.check_folder(folder)
    cached = _cached(storage_dir / folder)
    published, note = _published(ask)
    found = sorted(cached.keys() | (published or set()))[:_LISTED_MAX]
    resources = [
        ListedResource(name, cached.get(name), None if published is None else name in published) for name in found
    ]
    return Listing(folder, tuple(resources), note)


def _published(ask: Callable[[], list[str]] | None) -> tuple[set[str] | None, str | None]:
    if ask is None:
        return None, "Nobody is logged in, so the Resource API was not asked."
    try:
        listed = ask()
    except ResourceNotFound:
        return set(), None
    except LoaderError as err:
        return None, f"{err.code}: {err.message}"
    found = set()
    for name in listed:
        with contextlib.suppress(InvalidName):
            resource = name.removesuffix(_SMALL_SUFFIX)
            names.check_filename(resource)
            if name.endswith(_SMALL_SUFFIX):
                found.add(resource)
    return found, None


def _cached(directory: Path) -> dict[str, int]:
    found = {}
    try:
        entries = list(directory.iterdir())
    except OSError:  # no such folder in the cache
        return {}
    for entry in entries:
        with contextlib.suppress(OSError, InvalidName):
            about = entry.lstat()
            name = entry.name.removesuffix(_BIG_SUFFIX)
            names.check_filename(name)
            if entry.name.endswith(_BIG_SUFFIX) and stat.S_ISREG(about.st_mode):
                found[name] = about.st_size
    return found
