"""Runs another program: bounded output, a time-out on every wait, nothing left behind.

One thread does everything with `poll`, so a program that neither reads, writes nor exits can't hold the caller for
longer than the limits allow. The program gets a session (and so a process group) of its own: whatever ends a call
early, be it a fault, a time-out or the caller's `cancelled`, ends the whole group, and the pipes are closed.

A loader that is itself killed by SIGKILL can't do that. There is no PR_SET_PDEATHSIG here, since setting it needs code
between fork and exec, which is not safe in a program with threads. It isn't needed either: the kernel closes our ends
of the pipes, and a program that reads its standard input sees the end of it.
"""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

# A poll never sleeps longer than this, so that `cancelled` is asked in time.
TICK_S = 0.25
TERM_GRACE_S = 2.0
KILL_WAIT_S = 10.0
# A program's own end closes its pipes, so this only counts where a child of its own holds them open.
LEFTOVER_S = 0.5
READ_BYTES = 64 * 1024
# Fewer turns between the two processes than with the kernel's 64 KiB; the most that a user may ask for by default.
PIPE_BYTES = 1 << 20
# A full pipe is ready again as soon as its reader took a page or eight; filling those at once costs more than they are
# worth. So the reader gets this long for itself: a fast one empties half of the pipe meanwhile, and never waits.
DRAIN_S = 0.0005
STDERR_TAIL_BYTES = 64 * 1024

Buffer = bytes | bytearray | memoryview


class ProcessNotStarted(Exception):
    """There is no such program, or it can't be run; the message is the system's."""


class ProcessTimeout(Exception):
    """The program took longer than allowed; it has been ended."""


class ProcessStalled(Exception):
    """The program took no input for longer than allowed; it has been ended."""


class OutputTooLarge(Exception):
    """The program printed more than the caller can use; it has been ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: `exit_code` is negative for a signal, `stderr` the last part of what it said there."""

    exit_code: int
    stdout: bytes
    stderr: bytes


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout_s: float,
    stdout_limit_bytes: int,
    cancelled: Callable[[], None],
) -> Outcome:
    """Run a program without input to its end.

    Raises ProcessNotStarted, ProcessTimeout, OutputTooLarge, and what `cancelled` raises.
    """
    with _Child(command, environment, with_input=False, stdout_limit_bytes=stdout_limit_bytes) as child:
        return child.finish(time.monotonic() + timeout_s, cancelled)


def feed(
    command: Sequence[str],
    environment: Mapping[str, str],
    chunks: Iterable[Buffer],
    *,
    stall_timeout_s: float,
    finish_timeout_s: float,
    on_bytes: Callable[[int], None],
    cancelled: Callable[[], None],
    term_grace_s: float = TERM_GRACE_S,
) -> Outcome:
    """Run a program with `chunks` as its standard input; its standard output is read and forgotten.

    `on_bytes` is told the size of each piece that the program's pipe took. The clock of `stall_timeout_s` runs only
    while the program is waited for, not while the next chunk is made. `finish_timeout_s` is for the time after the
    last byte. A program that ends before it has taken everything is not a fault here: its exit code says what it is.
    `term_grace_s` is how long a program that has to go may take to end by itself; 0 ends it at once.

    Raises ProcessNotStarted, ProcessStalled, ProcessTimeout (after the last byte), and whatever `cancelled`,
    `on_bytes` or the making of a chunk raises.
    """
    with _Child(command, environment, with_input=True, stdout_limit_bytes=None, term_grace_s=term_grace_s) as child:
        for chunk in chunks:
            cancelled()
            if not child.write(memoryview(chunk).cast("B"), stall_timeout_s, on_bytes, cancelled):
                break
        child.close_input()
        return child.finish(time.monotonic() + finish_timeout_s, cancelled)


class _Child:
    """A running program and the pipes to it; leaving the `with` block ends it and closes them."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        with_input: bool,
        stdout_limit_bytes: int | None,
        term_grace_s: float = TERM_GRACE_S,
    ) -> None:
        # bufsize 0: a buffered stream would try to write out what is left in it when it is closed.
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.PIPE if with_input else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            raise ProcessNotStarted(getattr(error, "strerror", None) or str(error)) from error
        self._stdin = self._process.stdin.fileno() if self._process.stdin is not None else -1
        self._stdout = _number(self._process.stdout)
        self._stderr = _number(self._process.stderr)
        self._stdout_limit_bytes = stdout_limit_bytes
        self._term_grace_s = term_grace_s
        self._head = bytearray()
        self._tail = bytearray()
        self._open = {self._stdout, self._stderr}
        self._poll = select.poll()
        for descriptor in self._open:
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        if self._stdin >= 0:
            os.set_blocking(self._stdin, False)
            with contextlib.suppress(OSError):  # over the user's share of pipe memory: the usual size does too
                fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end()
        finally:
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                if stream is not None:
                    stream.close()

    def write(
        self, view: memoryview, stall_timeout_s: float, on_bytes: Callable[[int], None], cancelled: Callable[[], None]
    ) -> bool:
        """Give `view` to the program; False when the program has closed its input."""
        self._poll.register(self._stdin, select.POLLOUT)
        deadline = time.monotonic() + stall_timeout_s
        try:
            while view.nbytes:
                if self._has_ended():
                    return False
                if self._stdin in self._exchange(deadline):
                    try:
                        written = os.write(self._stdin, view)
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        return False
                    view = view[written:]
                    on_bytes(written)
                    if view.nbytes:
                        time.sleep(DRAIN_S)
                    deadline = time.monotonic() + stall_timeout_s
                elif time.monotonic() >= deadline:
                    raise ProcessStalled
                cancelled()
            return True
        finally:
            self._poll.unregister(self._stdin)

    def close_input(self) -> None:
        """Tell the program that this was all."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def finish(self, deadline: float, cancelled: Callable[[], None]) -> Outcome:
        """Wait for the program's end and return how it ended. Raises ProcessTimeout at `deadline`."""
        while not self._has_ended():
            cancelled()
            if time.monotonic() >= deadline:
                raise ProcessTimeout
            self._exchange(deadline)
        # What it said last may still be in the pipes, and a child that it left may go on writing: bounded.
        leftover = min(deadline, time.monotonic() + LEFTOVER_S)
        while self._open and time.monotonic() < leftover:
            self._exchange(leftover)
        self._end()
        return Outcome(self._process.returncode, bytes(self._head), bytes(self._tail))

    def _exchange(self, deadline: float) -> set[int]:
        """Wait at most a tick for something to happen, take what was printed, return the ready descriptors."""
        wait_s = min(TICK_S, deadline - time.monotonic())
        if not self._open:
            # Both outputs are closed, so nothing but its end is likely to come, and that wakes no poll.
            wait_s = min(wait_s, 0.01)
        ready = {descriptor for descriptor, _ in self._poll.poll(max(wait_s, 0.0) * 1000)}
        for descriptor in ready & self._open:
            self._read(descriptor)
        return ready

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._open.discard(descriptor)
            self._poll.unregister(descriptor)
        elif descriptor == self._stderr:
            self._tail += data
            del self._tail[:-STDERR_TAIL_BYTES]
        elif self._stdout_limit_bytes is not None:
            self._head += data
            if len(self._head) > self._stdout_limit_bytes:
                raise OutputTooLarge

    def _has_ended(self) -> bool:
        """Whether the program has ended; it stays a zombie, so that the number of its group can't be given anew."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _end(self) -> None:
        """End whatever is left of the group and reap the program."""
        if self._process.returncode is not None:
            return
        if self._term_grace_s and not self._has_ended():
            self._signal(signal.SIGTERM)
            self._wait(self._term_grace_s)
        self._signal(signal.SIGKILL)
        # A process in an uninterruptible wait outlives even that; the interpreter reaps it later.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_WAIT_S)
        self._reap_inherited()

    def _reap_inherited(self) -> None:
        """Reap what the program left: it is ours where the loader is process 1, as in a container."""
        deadline = time.monotonic() + LEFTOVER_S
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < deadline:
                if os.waitpid(-self._process.pid, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)

    def _wait(self, timeout_s: float) -> None:
        """Wait for the end, and let the program write meanwhile, or a full pipe would keep it from ending."""
        self._stdout_limit_bytes = None
        deadline = time.monotonic() + timeout_s
        while not self._has_ended() and time.monotonic() < deadline:
            self._exchange(deadline)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _number(stream: Any) -> int:
    number: int = stream.fileno()
    return number
