"""The part file of a download: its bytes, its lock and its state, flushed so that the state never promises too much."""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from azaion_loader import files
from azaion_loader.part_state import Pair, PartState, Ranges, discard, discard_state, load_ranges, state_path
from azaion_loader.store_answers import ObjectInfo

SYNC_EVERY_BYTES = 64 << 20
SYNC_EVERY_S = 5.0
LOCK_POLL_S = 0.1


class PartFile:
    """An open part file, locked against other processes and threads; a context manager.

    Opens what an earlier run left if that is of the same bucket, key, ETag and size, else starts clean. Waits for the
    lock, asking `cancelled`. Raises DiskFull before the first byte when the rest has no room.
    `done` are the ranges whose bytes are written; its owner guards it.
    """

    def __init__(
        self, path: Path, bucket: str, key: str, info: ObjectInfo, *, durable: bool, cancelled: Callable[[], None]
    ) -> None:
        self.path = path
        self._durable = durable
        self._saving = threading.Lock()
        self._state = PartState(bucket, key, info.etag, info.size)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = _open_locked(path, cancelled)
        try:
            self._resume(info.size)
        except BaseException:
            discard(self.path)
            self.close()
            raise
        self._syncing: threading.Thread | None = None
        self._synced_bytes = self.done.total()
        self._synced_s = time.monotonic()

    def _resume(self, size: int) -> None:
        trusted = load_ranges(state_path(self.path), self._state, os.fstat(self._descriptor).st_size)
        self.done = Ranges(trusted)
        if not trusted:
            # A new inode: whatever a worker of an earlier transfer still writes, it writes elsewhere.
            discard(self.path)
            os.close(self._descriptor)
            self._descriptor = _open_locked(self.path, lambda: None)
        self._state.written = self._state.synced = trusted
        files.require_space(self.path, size - self.done.total(), "the resource's big part")

    @contextlib.contextmanager
    def writer(self) -> Iterator[int]:
        """Give a descriptor of its own to one writer."""
        descriptor = os.dup(self._descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def prefix(self, pairs: list[Pair]) -> int:
        """Return up to where, from byte 0 on, `pairs` cover the file."""
        return Ranges(pairs).prefix()

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read written bytes back; short only where fewer were written."""
        return os.preadv(self._descriptor, [view], offset)

    def save(self, written_pairs: Callable[[], list[Pair]]) -> int:
        """Remember what is written now, and return how many bytes that is. From any thread. Raises DiskFull."""
        with self._saving:
            # Asked inside the lock: a later save never says less than an earlier one.
            return self._save(Ranges(written_pairs()))

    def _save(self, written: Ranges) -> int:
        total = written.total()
        self._state.written = written.pairs()
        with files.disk_full_named(self.path, total):
            self._state.save(state_path(self.path), durable=False)
        due = total - self._synced_bytes >= SYNC_EVERY_BYTES or time.monotonic() - self._synced_s >= SYNC_EVERY_S
        if self._durable and due and total > self._synced_bytes and not (self._syncing and self._syncing.is_alive()):
            self._synced_bytes, self._synced_s = total, time.monotonic()
            self._syncing = threading.Thread(target=self._sync, args=(written.pairs(),), daemon=True)
            self._syncing.start()
        return total

    def _sync(self, pairs: list[Pair]) -> None:
        """Flush the data, and only then say that it is flushed."""
        try:
            with self.writer() as descriptor:
                os.fdatasync(descriptor)
            self._state.synced = pairs
            self._state.save(state_path(self.path), durable=True)
        except OSError:
            # Nothing is promised, so nothing is lost; a disk that really fails stops the writers, too.
            return

    def finish(self, target: Path) -> None:
        """Put the whole file at `target`, flushed if durable, and forget the state. Raises DiskFull or OSError."""
        self._join_sync()
        with files.disk_full_named(self.path, 0):
            if self._durable:
                os.fsync(self._descriptor)
            # The state goes first: once the name is free, another process may begin a part file and a state there.
            discard_state(self.path)
            self.path.replace(target)
            if self._durable:
                files.sync_directory(target.parent)
        self.close()

    def remove(self) -> None:
        """Remove the file and its state: nothing of it may be used."""
        self._join_sync()
        discard(self.path)
        self.close()

    def close(self) -> None:
        """Give up the lock; the file and its state stay for the next run."""
        self._join_sync()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _join_sync(self) -> None:
        syncing = getattr(self, "_syncing", None)
        if syncing is not None:
            syncing.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_locked(path: Path, cancelled: Callable[[], None]) -> int:
    """Return a locked descriptor of the file that stands at `path` now."""
    while True:
        with files.disk_full_named(path, 0):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have moved or removed it before it let go.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            cancelled()
            time.sleep(LOCK_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
