"""Models in figures: each way beside what a person would do by hand, in turn, so that a busy moment hits both alike.

- cached load against `FileResponse` of the same plaintext by the same server
- uncached load against `aws s3 cp` followed by `openssl enc -d`
- upload against `openssl enc` followed by `aws s3 cp`
- memory of the service above idle, during a load and an upload at once

The store is a real S3 server. Needs `openssl` and `aws`; what lacks its tool is left out, aloud.
"""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.measure import Sampler

from azaion_devkit.resource_rig import ResourceRig, pattern

OURS, THEIRS = "ours", "theirs"
FORM_HEAD = (
    b'--b\r\nContent-Disposition: form-data; name="folder"\r\n\r\nmodels\r\n'
    b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
)
FORM_END = b"\r\n--b--\r\n"
ANSWER_TIMEOUT_S = 900.0
PIECE_BYTES = 1 << 18
SETTLE_S = 1.0
# A peak may be short; the service's memory is cheap to read.
MEMORY_SAMPLE_S = 0.05

Say = Callable[[str], None]


def measure(work: Path, *, size: int, memory_size: int, rounds: int, say: Say) -> dict[str, Any]:
    """Return all figures: seconds of each run, bytes of memory. `memory_size` 0 leaves the memory out."""
    work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="models-", dir=work))
    try:
        with ResourceRig(folder, separate=True) as rig:
            return _Models(rig, folder, size, rounds, say).measure(memory_size)
    finally:
        shutil.rmtree(folder)


class _Models:
    """One loader with its servers, and the files of the other ways."""

    def __init__(self, rig: ResourceRig, work: Path, size: int, rounds: int, say: Say) -> None:
        self.rig, self.size, self.rounds, self.say = rig, size, rounds, say
        self.port = int(rig.url.rsplit(":", 1)[1])
        self.plain, self.sealed, self.copied, self.result = (
            work / name for name in ("plain", "sealed", "copied", "result")
        )
        self.load_average: list[float] = []

    def measure(self, memory_size: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            "bytes": self.size, "store": self.rig.store.kind, "load_average": self.load_average,
        }  # fmt: skip
        if memory_size:
            self.say(" memory")
            found["memory"] = self._memory(memory_size)
        with self.plain.open("wb") as stream:
            stream.writelines(pattern(self.size))
        self._upload()
        self.say(" cached load")
        with _file_server(self.plain) as file_port:
            found["cached"] = self._in_turn(lambda: load(self.port, "m.bin"), lambda: load(file_port, "m.bin"))
        tools = _tools()
        found["tools"] = tools
        if None in tools.values():
            self.say(f" left out for want of {' and '.join(name for name in tools if tools[name] is None)}: the rest")
            return found
        self.say(" upload")
        found["upload"] = self._in_turn(self._upload, self._upload_by_hand)
        self.say(" uncached load")
        found["uncached"] = self._in_turn(self._load_uncached, self._load_by_hand)
        return found

    def _in_turn(self, ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, list[float]]:
        """Time both, in an order that alternates, after one round to warm up; the disk is at rest before each."""
        ways = {OURS: ours, THEIRS: theirs}
        seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
        for number in range(self.rounds + 1):
            for name in ways if number % 2 else reversed(ways):
                for leftover in (self.sealed, self.copied, self.result):
                    leftover.unlink(missing_ok=True)
                os.sync()
                started = time.perf_counter()
                ways[name]()
                taken = time.perf_counter() - started
                self.say(f"  {number or 'warm-up'} {name}: {taken:.2f} s")
                if number:
                    seconds[name].append(taken)
        self.load_average.append(os.getloadavg()[0])
        return seconds

    def _upload(self) -> None:
        upload(self.port, "m.bin", self.size, lambda: _pieces(self.plain))

    def _load_uncached(self) -> None:
        self.rig.cached_path("m.bin").unlink()
        load(self.port, "m.bin")

    def _upload_by_hand(self) -> None:
        _openssl(["-e"], self.plain, self.sealed)
        self._aws(self.sealed, "s3://models/hand.bin")

    def _load_by_hand(self) -> None:
        self._aws("s3://models/hand.bin", self.copied)
        _openssl(["-d"], self.copied, self.result)

    def _aws(self, source: object, target: object) -> None:
        access, secret = self.rig.store.uploader
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }  # fmt: skip
        endpoint = ["--endpoint-url", self.rig.store.url]
        command = ["aws", *endpoint, "s3", "cp", "--only-show-errors", str(source), str(target)]
        subprocess.run(command, env=environment, check=True)

    def _memory(self, size: int) -> dict[str, Any]:
        """Load and upload a large model at once; idle is the service after its start, and after its first requests."""
        with Sampler(self.rig.pid) as idle:
            time.sleep(SETTLE_S)
        upload(self.port, "small.bin", 1000, lambda: iter([bytes(1000)]))
        self.rig.cached_path("small.bin").unlink()
        load(self.port, "small.bin")
        with Sampler(self.rig.pid) as warm:
            time.sleep(SETTLE_S)
        upload(self.port, "large.bin", size, lambda: pattern(size))
        self.rig.cached_path("large.bin").unlink()
        started = time.perf_counter()
        with Sampler(self.rig.pid, every_s=MEMORY_SAMPLE_S) as busy, ThreadPoolExecutor(2) as jobs:
            both: list[Future[None]] = [
                jobs.submit(load, self.port, "large.bin"),
                jobs.submit(upload, self.port, "large-2.bin", size, lambda: pattern(size)),
            ]
            ended = [time.perf_counter() - started for job in both if job.exception() is None]
        for job in both:
            job.result()
        for name in ("large.bin", "large-2.bin"):
            self.rig.cached_path(name).unlink(missing_ok=True)
            self.rig.big_path(name).unlink(missing_ok=True)
        self.rig.store.refresh()
        self.load_average.append(os.getloadavg()[0])
        return {
            "bytes": size, "idle_bytes": idle.own_bytes, "warm_bytes": warm.own_bytes, "peak_bytes": busy.own_bytes,
            "seconds": max(ended),
        }  # fmt: skip


def post(port: int, path: str, body: object, headers: dict[str, str]) -> None:
    """Send a request and drop its answer's body. Raises RuntimeError unless it comes whole, with a 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S, blocksize=PIECE_BYTES)
    connection.request("POST", path, body, headers)  # type: ignore[arg-type]
    answer = connection.getresponse()
    announced = answer.length
    buffer = bytearray(1 << 20)
    count = 0
    while read := answer.readinto(buffer):
        count += read
    connection.close()
    if answer.status != 200 or count != announced:
        raise RuntimeError(f"{path}: {answer.status}, {count} of {announced} bytes, {bytes(buffer[:300])!r}")


def load(port: int, name: str) -> None:
    """Load a model."""
    body = json.dumps({"filename": name, "folder": "models"})
    post(port, f"/load/{name}", body, {"Content-Type": "application/json"})


def upload(port: int, name: str, size: int, pieces: Callable[[], Iterator[bytes]]) -> None:
    """Publish `size` bytes as a model."""

    def body() -> Iterator[bytes]:
        yield FORM_HEAD
        yield from pieces()
        yield FORM_END

    length = len(FORM_HEAD) + size + len(FORM_END)
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(length)}
    post(port, f"/upload/{name}", body(), headers)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


@contextlib.contextmanager
def _file_server(path: Path) -> Iterator[int]:
    """Serve the plaintext in a process of its own, like the loader."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    program = Path(__file__).with_name("file_server.py")
    process = subprocess.Popen([sys.executable, str(program), str(path), str(port)])
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def _openssl(arguments: list[str], source: Path, target: Path) -> None:
    key = ["-K", "00" * 32, "-iv", "01" * 16]
    command = ["openssl", "enc", *arguments, "-aes-256-cbc", *key, "-in", str(source), "-out", str(target)]
    subprocess.run(command, check=True)


def _tools() -> dict[str, str | None]:
    """Return the versions of the tools for the ways by hand; None for one that is not here."""
    found: dict[str, str | None] = {}
    for name, argument in (("aws", "--version"), ("openssl", "version")):
        found[name] = None
        if shutil.which(name) is not None:
            said = subprocess.run([name, argument], capture_output=True, text=True, check=False)
            if said.returncode == 0:
                found[name] = " ".join(said.stdout.split()[: 1 if name == "aws" else 2])
    return found
