"""The door to the local disk: whole-or-nothing writes, free space, locks between threads and processes."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from azaion_loader.errors import DiskFull

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_LOCK_POLL_S = 0.05


@contextlib.contextmanager
def disk_full_named(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turn a write that fails for want of room into DiskFull with the needed and free bytes; other faults pass."""
    try:
        yield
    except OSError as err:
        if err.errno not in _NO_ROOM:
            raise
        raise DiskFull(_no_room_sentence(path, needed_bytes, "a file")) from err


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data` so that a reader or a power cut sees the old content or the new, never a mix.

    The bytes and then the directory entry are flushed to the disk. Missing directories are made (0700).
    Raises DiskFull; other faults of the disk as OSError. Nothing is left beside `path` after a failure.
    """
    with disk_full_named(path, len(data)):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, aside_name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        aside = Path(aside_name)
        try:
            with os.fdopen(handle, "wb") as stream:
                os.fchmod(stream.fileno(), mode)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Return the room for an unprivileged writer on the file system of `path`, or of its nearest existing parent."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def require_space(path: Path, needed_bytes: int, what: str) -> None:
    """Raise DiskFull unless `needed_bytes` are free for `what` (a noun) where `path` is or would be."""
    if free_bytes(path) < needed_bytes:
        raise DiskFull(_no_room_sentence(path, needed_bytes, what))


def _no_room_sentence(path: Path, needed_bytes: int, what: str) -> str:
    return f"Not enough disk space for {what}: {needed_bytes} bytes needed, {free_bytes(path)} bytes free."


class FileLock:
    """An exclusive `flock` on a file, between the threads of this process and between processes.

    The kernel releases it when its holder dies, so a kill leaves no stale lock. Not re-entrant. The file stays:
    removing it would let two holders lock two different inodes of one name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._guard = threading.Lock()

    def try_acquire(self) -> bool:
        """Take the lock if it is free, and say whether it was. Raises DiskFull or OSError if its file can't be made."""
        with self._guard:
            if self._descriptor is not None:
                return False
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                os.close(descriptor)
                if err.errno not in {errno.EAGAIN, errno.EACCES}:
                    raise
                return False
            self._descriptor = descriptor
            return True

    def acquire(self, timeout_s: float) -> bool:
        """Take the lock, waiting up to `timeout_s`; say whether it was taken."""
        give_up = time.monotonic() + timeout_s
        while not self.try_acquire():
            if time.monotonic() >= give_up:
                return False
            time.sleep(_LOCK_POLL_S)
        return True

    def release(self) -> None:
        """Give the lock back; without effect if it isn't held."""
        with self._guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def is_held_elsewhere(self) -> bool:
        """Say whether another process, or another lock object of this one, holds it just now."""
        with self._guard:
            if self._descriptor is not None or not self._path.exists():
                return False
            descriptor = self._open()
            try:
                # A shared request: two askers don't take each other for a holder.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as err:
                if err.errno not in {errno.EAGAIN, errno.EACCES}:
                    raise
                return True
            finally:
                os.close(descriptor)
            return False

    def __enter__(self) -> Self:
        if not self.acquire(timeout_s=3600.0):
            raise TimeoutError(f"{self._path} stayed locked for an hour")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _open(self) -> int:
        with disk_full_named(self._path, 0):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # O_CLOEXEC is Python's default: a Docker client must not inherit, and so keep, the lock.
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
