"""Downloads one object into a part file over several connections, and picks up where a kill, a cut or a stall left it.

Worker threads run `RangeFetch`es; the calling thread supervises: it ends stalled fetches, remembers what is written,
feeds the sink in order while the bytes are still in the page cache, and asks `cancelled`. Memory is constant.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from azaion_loader.errors import DiskFull, LoaderError, UpstreamError, UpstreamTimeout
from azaion_loader.part_file import PartFile
from azaion_loader.range_fetch import RangeFetch
from azaion_loader.store_answers import ObjectChanged, ObjectInfo, RangeIgnored, is_transient
from azaion_loader.transfer_terms import PrefixSink, TransferLimits, backoff_s

TICK_S = 0.05
SAVE_EVERY_S = 0.2
SINK_BYTES = 1 << 20
STOP_TIMEOUT_S = 3.0
SLOW_TRY_S = 2.0
# A try that brought less than this counts as one without progress.
PROGRESS_BYTES = 16 * 1024


class PartDownload:
    """One download of one version of one object into `file`.

    `progress` is called with the number of the object's bytes that are on disk (resumed ones included).
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        key: str,
        info: ObjectInfo,
        file: PartFile,
        *,
        limits: TransferLimits,
        sink: PrefixSink | None,
        progress: Callable[[int], None],
        cancelled: Callable[[], None],
        whole: bool = False,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._info = info
        self._file = file
        self._limits = limits
        self._sink = sink
        self._progress = progress
        self._cancelled = cancelled
        self._whole = whole
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._active: set[RangeFetch] = set()
        self._fatal: BaseException | None = None
        self._queue = self._plan()
        self._fresh_bytes = 0
        self._high_water = file.done.total() if whole else 0
        self._fed = 0
        self._buffer = bytearray(SINK_BYTES if sink is not None else 0)

    def run(self) -> None:
        """Return when every byte is in the file and the sink has seen all of them (`prove` is left to the caller).

        Raises ObjectChanged, RangeIgnored (the caller begins anew, or without ranges), KeysRefused, ObjectMissing,
        UpstreamError, UpstreamUnavailable, UpstreamTimeout, DiskFull, and what `cancelled` raises. The state is saved.
        """
        workers = [
            threading.Thread(target=self._work, name="part-download", daemon=True)
            for _ in range(min(1 if self._whole else self._limits.connections, len(self._queue)))
        ]
        self._feed_from_start()
        for worker in workers:
            worker.start()
        try:
            self._supervise(workers)
        finally:
            self._end(workers)
        if self._fatal is not None:
            raise self._fatal
        if self._file.done.missing(self._info.size):
            raise UpstreamError("The object store's answers left a gap in the object.")

    def _plan(self) -> list[tuple[int, int]]:
        """Return what is to fetch, last part first (it is used as a stack)."""
        size, step = self._info.size, self._limits.part_bytes
        if self._whole:
            return [(0, size)]
        gaps = self._file.done.missing(size)
        cuts = [(a, min(a + step, end)) for start, end in gaps for a in range(start, end, step)]
        return cuts[::-1]

    # Worker threads.

    def _work(self) -> None:
        failures = 0
        fresh_before = 0
        while not self._stop.is_set():
            with self._lock:
                if not self._queue:
                    return
                fetch = RangeFetch(*self._queue.pop(), whole=self._whole)
                self._active.add(fetch)
            began_s = time.monotonic()
            error = self._fetch(fetch)
            fresh = self._retire(fetch, failed=error is not None)
            if error is None:
                failures = 0
                continue
            if fresh - fresh_before >= PROGRESS_BYTES:
                failures = 0
            fresh_before = fresh
            # A try that cost a time-out weighs double: a silent store must not be waited for too long.
            failures += 2 if time.monotonic() - began_s > SLOW_TRY_S else 1
            transient = isinstance(error, LoaderError) and is_transient(error)
            if not transient or failures >= self._limits.tries:
                self._fail(error)
                return
            self._stop.wait(backoff_s(failures))

    def _fetch(self, fetch: RangeFetch) -> BaseException | None:
        # A descriptor of its own: a worker that outlives the download can't write into another file.
        try:
            with self._file.writer() as descriptor:
                fetch.run(self._client, self._bucket, self._key, self._info, descriptor)
        except BaseException as err:  # noqa: BLE001 - handed to the calling thread, which raises it
            return err
        return None

    def _retire(self, fetch: RangeFetch, *, failed: bool) -> int:
        """Book what a fetch brought, put the rest back, and return how many new bytes there were so far."""
        with self._lock:
            self._active.discard(fetch)
            self._file.done.add(fetch.start, fetch.position)
            brought = fetch.position - fetch.start
            if self._whole:
                brought = max(0, fetch.position - self._high_water)
                self._high_water = max(self._high_water, fetch.position)
            self._fresh_bytes += brought
            if failed:
                rest = (0 if self._whole else fetch.position, fetch.end)
                self._queue.append(rest)
            fresh = self._fresh_bytes
        # Before the worker begins its next part: so a kill loses at most the parts under way.
        try:
            self._file.save(self._positions)
        except BaseException as err:  # noqa: BLE001 - handed to the calling thread, which raises it
            self._fail(err)
        self._wake.set()
        return fresh

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._fatal = self._fatal or error
        self._stop.set()
        self._wake.set()

    # The calling thread.

    def _supervise(self, workers: list[threading.Thread]) -> None:
        saved_s = time.monotonic()
        while self._fatal is None:
            self._cancelled()
            busy = any(worker.is_alive() for worker in workers)
            fed = self._feed()
            now = time.monotonic()
            self._end_stalled(now)
            if self._wake.is_set() or now - saved_s >= SAVE_EVERY_S:
                self._wake.clear()
                self._save()
                saved_s = now
            if not fed and not busy:
                return
            if not fed:
                self._wake.wait(TICK_S)

    def _save(self) -> None:
        done = self._file.save(self._positions)
        self._progress(done)

    def _positions(self) -> list[tuple[int, int]]:
        with self._lock:
            return [*self._file.done.pairs(), *((f.start, f.position) for f in self._active)]

    def _feed_from_start(self) -> None:
        if self._sink is not None:
            self._sink.reset()

    def _feed(self) -> bool:
        """Give the sink the next bytes; False when there are none (yet)."""
        if self._sink is None:
            return False
        end = self._file.prefix(self._positions())
        if end <= self._fed:
            return False
        view = memoryview(self._buffer)[: min(SINK_BYTES, end - self._fed)]
        count = self._file.read_into(view, self._fed)
        self._sink.update(view[:count])
        self._fed += count
        return True

    def _end_stalled(self, now: float) -> None:
        with self._lock:
            active = [fetch for fetch in self._active if fetch.streaming]
        for fetch in active:
            if fetch.window_start_s == 0.0:
                fetch.window_start_s, fetch.window_position = now, fetch.position
            if now - fetch.window_start_s < self._limits.stall_timeout_s:
                continue
            if fetch.position - fetch.window_position < min(self._limits.stall_min_bytes, fetch.end - fetch.start):
                fetch.abort(UpstreamTimeout("The object store went silent."))
            fetch.window_start_s, fetch.window_position = now, fetch.position

    def _end(self, workers: list[threading.Thread]) -> None:
        """Stop what still runs and save the state."""
        self._stop.set()
        with self._lock:
            active = list(self._active)
        for fetch in active:
            fetch.abort(UpstreamError("The transfer was ended."))
        give_up = time.monotonic() + STOP_TIMEOUT_S
        for worker in workers:
            worker.join(max(0.0, give_up - time.monotonic()))
        self._save()


def download_object(
    client: Any,
    bucket: str,
    key: str,
    part: Path,
    info: ObjectInfo,
    *,
    limits: TransferLimits,
    head: Callable[[], ObjectInfo],
    sink: PrefixSink | None,
    progress: Callable[[int], None],
    cancelled: Callable[[], None],
    durable: bool,
) -> tuple[PartFile, ObjectInfo]:
    """Bring the object whole into `part`, and return the (open) part file and what it holds.

    A changed object starts clean and a store that ignores ranges is read in one piece; each of these a bounded
    number of times. Raises as PartDownload.run.
    """
    whole = False
    restarts = 0
    while True:
        file = PartFile(part, bucket, key, info, durable=durable, cancelled=cancelled)
        transfer = PartDownload(
            client,
            bucket,
            key,
            info,
            file,
            limits=limits,
            sink=sink,
            progress=progress,
            cancelled=cancelled,
            whole=whole,
        )
        try:
            transfer.run()
        except (ObjectChanged, RangeIgnored) as err:
            file.close()
            restarts += 1
            if restarts >= limits.tries:
                sentence = "The object in the store kept changing, or the store's answers contradict each other."
                raise UpstreamError(sentence) from err
            # Once may be chance; a store that does it again can't do ranges.
            whole = isinstance(err, RangeIgnored) and restarts > 1
            threading.Event().wait(backoff_s(restarts))
            cancelled()
            info = head()
        except DiskFull:
            # The room is needed more than the head start.
            file.remove()
            raise
        except BaseException:
            file.close()
            raise
        else:
            return file, info
