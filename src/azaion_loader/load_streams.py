"""Runs the steps of a load side by side, each behind the one that it builds on; one failure ends them all.

A step's bytes go to the engine as soon as its turn comes. Its end, without which the engine registers nothing, is
held back until the gate is open (all is proved) and the step before it is done. What builds on another step begins
after the gate: until then the proof needs the cores more. A step has one of few turns while it is given bytes, and
one of others while it ends, which is the engine's work alone; in between it waits without a turn, so the next one is
given bytes while a large base is being registered.
"""

import threading
import time
from collections.abc import Callable, Sequence

from azaion_loader.load_tree import LoadStep

# A thread that waits asks this often whether it still should.
TICK_S = 0.1
# An engine that has a stream's end may register the image although its client is gone. So a stream that has been
# given whole gets this long to be over before a failure elsewhere ends it.
SETTLE_S = 5.0
# How many streams may wait, all but their end given. Every one of them has a client of its own, some 20 MiB.
WAITING_MAX = 6


class Stopped(Exception):
    """Ends a step because another one failed; never leaves this module."""


class StepRun:
    """What a step's work may ask for while it runs."""

    def __init__(self, streams: "LoadStreams", after: int | None, turn: threading.Semaphore) -> None:
        self._streams = streams
        self._after = after
        self._ended = False
        self.turn = turn

    def cancelled(self) -> None:
        """Raise Interrupted when the loader is stopping, or what ends this step because another one failed."""
        self._streams.check(settling=self._ended)

    def before_end(self) -> None:
        """Wait until the end of the stream may be given. Raises what `cancelled` raises."""
        self.turn = self._streams.wait_until_free(self._after, self.turn)
        self._ended = True


class LoadStreams:
    """Does `work` for each step; a context manager that leaves no thread behind.

    At most `giving` steps are given bytes at a time, and at most `ending` are ended. `work` gets the step and its
    StepRun. `cancelled` raises Interrupted when the loader is stopping.
    """

    def __init__(
        self,
        steps: Sequence[LoadStep],
        work: Callable[[LoadStep, StepRun], None],
        *,
        giving: int,
        ending: int,
        cancelled: Callable[[], None],
    ) -> None:
        self._steps = steps
        self._work = work
        self._cancelled = cancelled
        self._guard = threading.Lock()
        self._gate = threading.Event()
        self._givings = threading.Semaphore(giving)
        self._endings = threading.Semaphore(ending)
        self._done = [threading.Event() for _ in steps]
        # Steps are taken in their order, so one that waits for another waits for what is done or being done.
        self._left = iter(range(len(steps)))
        self._error: BaseException | None = None
        self._failed_at: float | None = None
        self._threads = [
            threading.Thread(target=self._take_steps, name=f"load-{number}", daemon=True)
            for number in range(min(giving + WAITING_MAX, len(steps)))
        ]

    def start(self) -> None:
        """Begin to give bytes; nothing is registered before `open_gate`."""
        for thread in self._threads:
            thread.start()

    def open_gate(self) -> None:
        """Let the ends of the streams go: everything in them is proved."""
        self._gate.set()

    def finish(self) -> None:
        """Wait until all steps are done. Raises the first error of any; by then all have ended."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "LoadStreams":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._fail(error)
            for thread in self._threads:
                if thread.ident is not None:
                    thread.join()

    def check(self, *, settling: bool) -> None:
        """Raise Interrupted when the loader is stopping, Stopped when another step failed (see SETTLE_S)."""
        self._cancelled()
        failed_at = self._failed_at
        if failed_at is not None and not (settling and time.monotonic() - failed_at < SETTLE_S):
            raise Stopped

    def wait_until_free(self, after: int | None, turn: threading.Semaphore) -> threading.Semaphore:
        """Give `turn` back, wait for the gate and the step number `after`, if any, and return a turn to end with.

        Raises what `check` raises.
        """
        turn.release()
        self._wait(self._gate)
        if after is not None:
            self._wait(self._done[after])
        self._take(self._endings)
        self.check(settling=False)
        return self._endings

    def _wait(self, event: threading.Event) -> None:
        while not event.wait(TICK_S):
            self.check(settling=False)

    def _take(self, turn: threading.Semaphore) -> None:
        while not turn.acquire(timeout=TICK_S):
            self.check(settling=False)

    def _take_steps(self) -> None:
        while self._failed_at is None:
            try:
                self._take(self._givings)
                with self._guard:
                    number = next(self._left, None)
                if number is None:
                    self._givings.release()
                    return
                self._take_step(number)
            except BaseException as error:  # noqa: BLE001 - handed to `finish`, which raises it
                # All the others end too, so nobody misses a turn that is not given back.
                self._fail(error)
                return

    def _take_step(self, number: int) -> None:
        """Do a step, of which the caller has the turn to give bytes."""
        step = self._steps[number]
        if step.after is not None:
            self._wait(self._gate)  # in order, so nobody behind it is kept from beginning
        run = StepRun(self, step.after, self._givings)
        self._work(step, run)
        self._done[number].set()
        run.turn.release()

    def _fail(self, error: BaseException) -> None:
        with self._guard:
            if self._failed_at is None:
                self._error, self._failed_at = error, time.monotonic()
