"""Processes known by their pid files: whether they run, and their end."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def running(pid_file: Path, name: str) -> int | None:
    """Return the process that `pid_file` names if it runs under that name: numbers are given anew, files stay."""
    try:
        pid = int(pid_file.read_text())
        found = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return None
    return pid if found == name and not _is_gone(pid) else None


def end_process(pid: int, number: int, timeout_s: float) -> None:
    """Send a signal and wait for the end; SIGKILL where that takes longer than `timeout_s`."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        if not within(timeout_s, lambda: _is_gone(pid)) and number != signal.SIGKILL:
            os.kill(pid, signal.SIGKILL)
            within(timeout_s, lambda: _is_gone(pid))


def within(timeout_s: float, condition: Callable[[], bool]) -> bool:
    """Ask again and again until `condition` holds; False when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie, which its parent has not asked for yet, counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
