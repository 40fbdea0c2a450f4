"""True progress of an unlock run: it never goes back, and reaches 100 % only with `ready`."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from azaion_loader import metrics
from azaion_loader.unlock_state import UnlockState

# The rate is that of the last seconds, so that a pause shows soon and a burst does not mislead.
_RATE_WINDOW_S = 10.0
# Bytes are the measure of all work before the end; the last percent belongs to the proof and the switch of tags.
_PERCENT_BEFORE_READY = 99.0


@dataclass(frozen=True, slots=True)
class UnlockProgress:
    """A snapshot. Bytes count what is read to be proved plus what is given to the engine."""

    run_id: str | None
    state: UnlockState
    stage: str
    bytes_done: int
    bytes_total: int
    images_done: int
    images_total: int
    percent: float
    rate_bytes_per_s: float | None
    seconds_left: float | None
    seconds_since_change: float | None
    note: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the snapshot as plain values."""
        return asdict(self)


class ProgressMeter:
    """Counts for one run; safe to feed and to read from several threads."""

    def __init__(self, run_id: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._run_id = run_id
        self._state = UnlockState.IDLE
        self._stage = "idle"
        self._note: str | None = None
        self._bytes_done = self._bytes_total = 0
        self._images_done = self._images_total = 0
        self._percent = 0.0
        self._entered = clock()
        self._changed: float | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def enter(self, state: UnlockState, stage: str | None = None) -> None:
        """Go to a state; `stage` says in a few words what it is doing there."""
        with self._guard:
            self._leave_state()
            self._state = state
            self._stage = stage or _stage_of(state)
            self._touch()

    def stage(self, stage: str) -> None:
        """Say what is being done now."""
        with self._guard:
            self._stage = stage
            self._touch()

    def note(self, note: str | None) -> None:
        """Add a remark that a person should see (which way is used, what could not be checked)."""
        with self._guard:
            self._note = f"{self._note} {note}" if self._note and note else note

    def expect_bytes(self, count: int) -> None:
        """Add to the work that is known to lie ahead."""
        with self._guard:
            self._bytes_total += count

    def add_bytes(self, count: int) -> None:
        """Count work as done; never more than was expected."""
        if count <= 0:
            return
        with self._guard:
            self._bytes_done = min(self._bytes_done + count, self._bytes_total)
            metrics.count("unlock_bytes", count)
            self._touch()
            now = self._clock()
            self._samples.append((now, self._bytes_done))
            # The oldest sample kept is the last one outside the window: the rate's other end.
            while len(self._samples) > 2 and now - self._samples[1][0] >= _RATE_WINDOW_S:
                self._samples.popleft()
            if self._bytes_total:
                reached = _PERCENT_BEFORE_READY * self._bytes_done / self._bytes_total
                self._percent = max(self._percent, min(reached, _PERCENT_BEFORE_READY))

    def images(self, done: int, total: int) -> None:
        """Say how many of the required images stand proved in the engine; the number never falls."""
        with self._guard:
            self._images_total = max(total, self._images_total)
            self._images_done = max(done, self._images_done)
            self._touch()

    def finish(self) -> None:
        """Reach `ready`: everything that was expected is done."""
        with self._guard:
            self._leave_state()
            self._state, self._stage = UnlockState.READY, UnlockState.READY.value
            self._bytes_done, self._images_done = self._bytes_total, self._images_total
            self._percent = 100.0
            self._touch()

    def entering(self, state: UnlockState) -> UnlockProgress:
        """Return the figures that `enter` will show."""
        return replace(self.snapshot(), state=state, stage=_stage_of(state))

    def finished(self) -> UnlockProgress:
        """Return the figures that `finish` will show."""
        figures = self.snapshot()
        return replace(
            figures,
            state=UnlockState.READY,
            stage=UnlockState.READY.value,
            bytes_done=figures.bytes_total,
            images_done=figures.images_total,
            percent=100.0,
            rate_bytes_per_s=None,
            seconds_left=None,
        )

    def snapshot(self) -> UnlockProgress:
        """Return the figures of this moment."""
        with self._guard:
            rate = self._rate()
            left = (self._bytes_total - self._bytes_done) / rate if rate and self._state.in_progress else None
            return UnlockProgress(
                run_id=self._run_id,
                state=self._state,
                stage=self._stage,
                bytes_done=self._bytes_done,
                bytes_total=self._bytes_total,
                images_done=self._images_done,
                images_total=self._images_total,
                percent=round(self._percent, 1) if self._percent == 100.0 else min(round(self._percent, 1), 99.9),
                rate_bytes_per_s=None if rate is None else round(rate, 1),
                seconds_left=None if left is None else round(left, 1),
                seconds_since_change=None if self._changed is None else round(self._clock() - self._changed, 3),
                note=self._note,
            )

    def _rate(self) -> float | None:
        if not self._state.in_progress or len(self._samples) < 2:
            return None
        first_time, first_bytes = self._samples[0]
        # Up to now, not up to the last sample: a stall must pull the rate down.
        elapsed = self._clock() - first_time
        return (self._samples[-1][1] - first_bytes) / elapsed if elapsed > 0 else None

    def _leave_state(self) -> None:
        now = self._clock()
        if self._state.in_progress:
            metrics.count("unlock_stage_seconds", now - self._entered, state=self._state.value)
            metrics.count("unlock_stages", state=self._state.value)
        self._entered = now

    def _touch(self) -> None:
        self._changed = self._clock()


def _stage_of(state: UnlockState) -> str:
    return state.value.replace("_", " ")
