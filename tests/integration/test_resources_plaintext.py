"""Plaintext never touches the disk: a canary is looked for wherever the loader could have put it."""

import contextlib
import os
import random
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from azaion_devkit.fault_proxy import FaultProxy, Rule
from azaion_devkit.resource_rig import ResourceRig

pytestmark = pytest.mark.store

# What the kernel makes up: nothing can be put down there.
_NO_DISKS = frozenset({
    "proc", "sysfs", "devpts", "cgroup", "cgroup2", "mqueue", "devtmpfs", "debugfs", "tracefs", "securityfs", "bpf",
    "pstore", "fusectl", "configfs", "binfmt_misc", "autofs", "nsfs", "rpc_pipefs",
})  # fmt: skip
_PIECE_BYTES = 4 << 20


class Scan:
    """Looks for `canary` in the files below `places` and in every file that a process holds open."""

    def __init__(self, canary: bytes, pid: int, places: list[Path]) -> None:
        self._canary = canary
        self._places = places
        self._descriptors = Path(f"/proc/{pid}/fd")
        self._started_s = time.time()
        self.found: list[str] = []
        self.rounds = 0
        self.opened = 0

    def once(self) -> None:
        """Look once at all of it."""
        for place in self._places:
            self._look(path for path in place.rglob("*") if path.is_file() and not path.is_symlink())
        # Also those without a name: a deleted file, one of O_TMPFILE, one in memory.
        opened = [entry for entry in self._descriptors.iterdir() if _is_regular(entry)]
        self.opened = max(self.opened, len(opened))
        self._look(opened)
        self.rounds += 1

    def everywhere(self) -> int:
        """Look at whatever file of any writable directory has changed meanwhile; return how many there were."""
        changed = list(_changed_since(self._started_s))
        self._look(changed)
        return len(changed)

    @contextlib.contextmanager
    def all_along(self) -> Iterator[None]:
        """Look again and again in a thread of its own."""
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                self.once()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _look(self, paths: "Iterator[Path] | list[Path]") -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                if self._holds(path):
                    self.found.append(str(path))

    def _holds(self, path: Path) -> bool:
        tail = b""
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                if self._canary in tail + piece:
                    return True
                tail = piece[-len(self._canary) :]
        return False


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _changed_since(started_s: float) -> Iterator[Path]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind in _NO_DISKS or "rw" not in options.split(",") or not Path(place).is_dir():
            continue
        device = Path(place).stat().st_dev
        for folder, folders, names in os.walk(place):
            folders[:] = [name for name in folders if _on_device(f"{folder}/{name}", device)]
            if not os.access(folder, os.W_OK):
                continue
            for name in names:
                with contextlib.suppress(OSError):
                    found = os.lstat(f"{folder}/{name}")
                    if stat.S_ISREG(found.st_mode) and found.st_ctime >= started_s:
                        yield Path(folder, name)


def _on_device(folder: str, device: int) -> bool:
    try:
        return os.lstat(folder).st_dev == device
    except OSError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_plaintext_on_disk_or_in_an_open_file(tmp_path: Path, thorough: bool) -> None:
    """With stops where a transfer is half done, so that the scan sees what is there in the middle."""
    canary = secrets.token_hex(16).encode()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    plain = b"".join(canary + random.Random(n).randbytes(970) for n in range(20_000))
    with ResourceRig(tmp_path / "rig", environment={"TMPDIR": str(temporary)}, separate=True) as rig:
        with FaultProxy(rig.store.url) as proxy:
            rig.point_store_at(proxy.url)
            places = [tmp_path, *(path for path in map(Path, ("/dev/shm", "/var/tmp")) if path.is_dir())]
            scan = Scan(canary, rig.pid, places)
            with scan.all_along(), ThreadPoolExecutor(1) as client:
                _upload(rig, plain, scan)
                assert rig.load("m.bin").content == plain
                _load_half(rig, plain, scan)
                rig.cached_path("m.bin").unlink()
                proxy.add(Rule("GET", stall_after_bytes=1_000_000))
                fetched = client.submit(rig.load, "m.bin")
                assert proxy.wait_for_stall()
                scan.once()
                proxy.release()
                assert fetched.result(60).content == plain
            scan.once()
            assert scan.opened >= 2
            assert scan.found == []
        if thorough:
            assert scan.everywhere() > 5
            assert scan.found == []
        rig.stop_loader()
        _prove_that_it_sees(scan, canary, temporary)


def _upload(rig: ResourceRig, plain: bytes, scan: Scan) -> None:
    """Upload with a stop at half of the body, and one between the two parts."""
    host = urlsplit(rig.url)
    head = b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
    end = b"\r\n--b--\r\n"
    with socket.create_connection((str(host.hostname), host.port or 0)) as client:
        client.sendall(
            b"POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: %d\r\n\r\n" % (len(head) + len(plain) + len(end))
        )
        client.sendall(head + plain[: len(plain) // 2])
        uploads = rig.data_dir / ".azaion-loader" / "uploads"
        wait_for(lambda: any(path.stat().st_size > len(plain) // 4 for path in uploads.glob("*")))
        scan.once()
        hold = rig.api.hold_next("/resources/models")
        client.sendall(plain[len(plain) // 2 :] + end)
        assert hold.reached.wait(30)
        scan.once()
        hold.release()
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def _load_half(rig: ResourceRig, plain: bytes, scan: Scan) -> None:
    """Load with a stop in the middle of the answer."""
    body = {"filename": "m.bin", "folder": "models"}
    with requests.post(f"{rig.url}/load/m.bin", json=body, stream=True, timeout=60) as answer:
        first = answer.raw.read(1_000_000)
        scan.once()
        assert first + answer.raw.read() == plain


def _prove_that_it_sees(scan: Scan, canary: bytes, folder: Path) -> None:
    """Put the canary down, once in a file and once in an open file without a name."""
    with tempfile.TemporaryFile(dir=folder) as nameless:
        nameless.write(bytes(5_000_000) + canary)
        nameless.flush()
        command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[nameless.fileno()]
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            other = Scan(canary, holder.pid, [])
            other.once()
            assert other.found == [f"/proc/{holder.pid}/fd/{nameless.fileno()}"]
            holder.communicate()
    (folder / "canary").write_bytes(bytes(_PIECE_BYTES - 5) + canary)
    other = Scan(canary, os.getpid(), [folder])
    other.once()
    assert other.found == [str(folder / "canary")]
    (folder / "canary").unlink()
