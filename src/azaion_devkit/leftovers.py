"""What a test leaves behind in its own process: threads, children, descriptors.

Only what is new counts: something of an earlier test may end meanwhile.
"""

import contextlib
import threading
from pathlib import Path

Belongings = frozenset[tuple[str, object]]


def belongings() -> Belongings:
    """Return what this process has now."""
    found: set[tuple[str, object]] = {("thread", thread) for thread in threading.enumerate()}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update(("child", child) for child in (task / "children").read_text().split())
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add(("descriptor", (entry.name, str(entry.readlink()))))
    return frozenset(found)


def left_since(before: Belongings) -> Belongings:
    """Return what this process has now and had not before."""
    return belongings() - before
