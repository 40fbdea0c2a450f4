"""The cache of big parts: where they lie, which one is in use, which one goes when room is needed.

`<storage_dir>/<folder>/<name>.big` holds a part; everything else (notes, locks, unfinished transfers) lies in the
dot-directory, which no resource's name can reach. A reader holds a shared `flock` on the part that it reads, so a
part in use is known to every process; one that is replaced meanwhile stays readable through its descriptor.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from azaion_loader import files, names
from azaion_loader.errors import InvalidName, UpstreamTimeout
from azaion_loader.part_notes import PartNotes

SUFFIX = ".big"
# Missing, under a file, a link, a socket.
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
_ABANDONED_AFTER_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class _Cached:
    """One part in the cache, as eviction sees it."""

    last_used_s: float
    size: int
    folder: str
    name: str
    path: Path


class PartCache:
    """The parts below `storage_dir`, at most `max_bytes` of them besides those in use."""

    def __init__(self, storage_dir: Path, state_dir: Path, max_bytes: int, lock_timeout_s: float) -> None:
        self.notes = PartNotes(state_dir)
        self._storage_dir = storage_dir
        self._state_dir = state_dir
        self._max_bytes = max_bytes
        self._lock_timeout_s = lock_timeout_s

    def path(self, folder: str, name: str) -> Path:
        """Return where the part of a resource lies when it is cached."""
        return self._storage_dir / folder / f"{name}{SUFFIX}"

    def transfer_path(self, folder: str, name: str) -> Path:
        """Return where an unfinished download of the part lies, so that the next one can go on with it."""
        return self._state_dir / "transfers" / folder / f"{name}{SUFFIX}"

    @property
    def upload_dir(self) -> Path:
        """The directory of uploads under way (ciphertext)."""
        return self._state_dir / "uploads"

    def lock(self, folder: str, name: str) -> files.FileLock:
        """Return the lock between everything that replaces this resource's part, in any process."""
        return files.FileLock(self._state_dir / "locks" / "resources" / folder / f"{name}.lock")

    @contextlib.contextmanager
    def locked(self, folder: str, name: str) -> Iterator[bool]:
        """Hold the resource's lock, and say whether another holder had to be waited for.

        Raises UpstreamTimeout when that one does not come to an end.
        """
        lock = self.lock(folder, name)
        waited = not lock.try_acquire()
        if waited and not lock.acquire(self._lock_timeout_s):
            raise UpstreamTimeout(
                f"Another transfer of '{name}' is still under way after {self._lock_timeout_s:g} s; try again later."
            )
        try:
            yield waited
        finally:
            lock.release()

    def open_part(self, folder: str, name: str) -> int | None:
        """Return a descriptor of the cached part, marked as in use until it is closed; None when there is none."""
        return open_in_use(self.path(folder, name))

    def keep(self, aside: Path, folder: str, name: str) -> None:
        """Move a finished part into the cache, over an earlier one. The caller holds the lock.

        Raises OSError, with `aside` untouched.
        """
        target = self.path(folder, name)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside.replace(target)
        files.sync_directory(target.parent)

    def make_room(self, needed_bytes: int, what: str) -> None:
        """Remove least recently used parts until `needed_bytes` more fit the bound and the disk.

        Parts in use, or being replaced, stay. Raises DiskFull when the disk still has no room for `what`.
        """
        self.trim(needed_bytes)
        files.require_space(self._state_dir, needed_bytes, what)

    def trim(self, needed_bytes: int = 0) -> None:
        """Remove least recently used parts until the bound holds and the disk has room, with `needed_bytes` more.

        A part that alone is over the bound goes first, and pushes no others out.
        """
        cached = sorted(self._all(), key=lambda part: (part.size <= self._max_bytes, part.last_used_s))
        total = sum(part.size for part in cached)
        wanted = needed_bytes if needed_bytes <= self._max_bytes else 0
        for part in cached:
            if total + wanted <= self._max_bytes and files.free_bytes(self._storage_dir) >= needed_bytes:
                return
            if self._evict(part):
                total -= part.size

    def sweep(self) -> None:
        """Remove what killed processes left: uploads that nobody writes, and downloads that nobody went on with."""
        for aside in _entries(self.upload_dir):
            _remove_if_unlocked(aside)
        oldest_s = time.time() - _ABANDONED_AFTER_S
        for folder in _entries(self._state_dir / "transfers"):
            for leftover in _entries(folder):
                with contextlib.suppress(FileNotFoundError):
                    if leftover.is_file() and leftover.stat().st_mtime < oldest_s:
                        leftover.unlink()

    def _all(self) -> Iterator[_Cached]:
        for folder in _entries(self._storage_dir):
            for path in _entries(folder) if _is_folder(folder.name) else ():
                with contextlib.suppress(FileNotFoundError, InvalidName):
                    found = path.lstat()
                    name = path.name.removesuffix(SUFFIX)
                    names.check_filename(name)
                    if path.suffix == SUFFIX and stat.S_ISREG(found.st_mode):
                        used_s = self.notes.last_used_s(folder.name, name)
                        last_used_s = found.st_mtime if used_s is None else used_s
                        yield _Cached(last_used_s, found.st_size, folder.name, name, path)

    def _evict(self, part: _Cached) -> bool:
        """Remove a part and its note unless someone uses or replaces it; say whether it is gone."""
        lock = self.lock(part.folder, part.name)
        if not lock.try_acquire():
            return False
        try:
            if not _remove_if_unlocked(part.path):
                return False
            self.notes.forget_part(part.folder, part.name)
            return True
        finally:
            lock.release()


def open_in_use(path: Path) -> int | None:
    """Return a descriptor of a part, marked as in use until it is closed; None where there is no such file."""
    try:
        # O_NONBLOCK: a FIFO under this name must not hang the service.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as err:
        if err.errno not in _NO_FILE:
            raise
        return None
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if _same_file(found, path):
                return descriptor
    except BlockingIOError:
        # Eviction holds it: as good as gone.
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _entries(directory: Path) -> list[Path]:
    """Return what lies in a directory; nothing where there is no such directory."""
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_folder(name: str) -> bool:
    try:
        names.check_folder(name)
    except InvalidName:
        return False
    return True


def _same_file(found: os.stat_result, path: Path) -> bool:
    """Say whether the name still leads to the opened file."""
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)


def _remove_if_unlocked(path: Path) -> bool:
    """Remove a file that nobody holds a `flock` on; say whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same_file(os.fstat(descriptor), path):
            path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
