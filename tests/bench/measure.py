"""What a measurement sees of processes: CPU seconds, proportional memory, bytes read, files left in a folder."""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

# Seldom enough to cost nothing that a timed run would show.
SAMPLE_S = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")


def engine_pid(host: str) -> int:
    """Return the process behind an engine's unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(host.removeprefix("unix://"))
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def children(pid: int) -> list[int]:
    """Return the processes that any thread of a process has started and that still run."""
    found: list[int] = []
    # A process may be gone at any moment, its folder of threads in the middle of a listing, too.
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    waiting = [pid]
    while waiting:
        number = waiting.pop()
        yield number
        waiting += children(number)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, of those below it, and of those that they have waited for."""
    total = 0
    for number in tree(pid):
        with contextlib.suppress(OSError):
            total += sum(map(int, Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[11:15]))
    return total / _TICKS


def bytes_read(pid: int) -> int:
    """Return what a process has read by system calls, from files, pipes and sockets."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "rchar":
            return int(value)
    raise RuntimeError("no rchar in /proc/<pid>/io")


def pss_bytes(pid: int) -> int:
    """Return the proportional share of memory; 0 for a process that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def command_line(pid: int) -> bytes:
    """Return a process's command; nothing for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_client(pid: int) -> bool:
    """Whether the process is the engine's own client."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "docker"
    return False


def disk_bytes(folder: Path) -> int:
    """Return what the files under a folder take on the disk, each file once."""
    seen: dict[int, int] = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                facts = (Path(directory) / name).lstat()
                seen[facts.st_ino] = facts.st_blocks * 512
    return sum(seen.values())


@dataclass
class Sampler:
    """Watches a process and all below it, and a folder, while the `with` block runs; keeps the highest values."""

    pid: int
    folder: Path | None = None
    every_s: float = SAMPLE_S
    own_bytes: int = 0
    client_bytes: int = 0
    disk_bytes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._before = disk_bytes(self.folder) if self.folder is not None else 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            own = client = 0
            command = command_line(self.pid)
            for number in tree(self.pid):
                # Between fork and exec a child is its parent under another number: the same memory, counted already.
                if number != self.pid and command_line(number) in {command, b""}:
                    continue
                if is_client(number):
                    client += pss_bytes(number)
                else:
                    own += pss_bytes(number)
            self.own_bytes = max(self.own_bytes, own)
            self.client_bytes = max(self.client_bytes, client)
            if self.folder is not None:
                self.disk_bytes = max(self.disk_bytes, disk_bytes(self.folder) - self._before)
            if self._stop.wait(self.every_s):
                return
