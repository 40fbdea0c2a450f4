"""Resources in figures: each beside what a person would do by hand, in turn, so that a busy moment hits both alike.

- memory: proportional set size of the service above idle, during a load and an upload at once
- cached load against `FileResponse` of the same plaintext by the same server
- uncached load against `aws s3 cp` followed by `openssl enc -d`
- upload against `openssl enc` followed by `aws s3 cp`

`python tests/bench/resources_bench.py [--mb 500] [--memory-mb 4096] [--runs 5] [--json]`; needs `openssl`, and `aws`
(a ratio without its tool is left out, and that is said).
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.responses import FileResponse

from azaion_devkit.resource_rig import ResourceRig, pattern

MB = 1_000_000
FORM_HEAD = (
    b'--b\r\nContent-Disposition: form-data; name="folder"\r\n\r\nmodels\r\n'
    b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
)
FORM_END = b"\r\n--b--\r\n"
BARS = {"memory above idle, MB": 96.0, "cached load": 1.6, "uncached load": 1.0, "upload": 1.2}


def post(port: int, path: str, body: object, headers: dict[str, str]) -> int:
    """Send a request and drop its answer's body; return that one's length."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900, blocksize=1 << 18)
    connection.request("POST", path, body, headers)  # type: ignore[arg-type]
    answer = connection.getresponse()
    buffer = bytearray(1 << 20)
    count = 0
    while read := answer.readinto(buffer):
        count += read
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {bytes(buffer[:300])!r}")
    return count


def load(port: int, name: str) -> int:
    body = json.dumps({"filename": name, "folder": "models"})
    return post(port, f"/load/{name}", body, {"Content-Type": "application/json"})


def upload(port: int, name: str, size: int, pieces: Callable[[], Iterator[bytes]]) -> None:
    def body() -> Iterator[bytes]:
        yield FORM_HEAD
        yield from pieces()
        yield FORM_END

    length = len(FORM_HEAD) + size + len(FORM_END)
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(length)}
    post(port, f"/upload/{name}", body(), headers)


def from_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(1 << 18):
            yield piece


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process and its children."""
    total = 0
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        pids += [int(child) for child in (task / "children").read_text().split()]
    for one in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total / MB


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> dict[str, float]:
    """Time both `runs` times, alternating, after one run of each to warm up."""
    ours(), theirs()
    ours_s, theirs_s = [], []
    for _ in range(runs):
        ours_s.append(seconds(ours))
        theirs_s.append(seconds(theirs))
    mine, other = statistics.median(ours_s), statistics.median(theirs_s)
    return {"ours_s": mine, "theirs_s": other, "ratio": mine / other}


@contextlib.contextmanager
def file_server(path: Path) -> Iterator[int]:
    """Serve the plaintext with FileResponse, in a process of its own like the loader."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([sys.executable, __file__, "--serve-file", str(path), "--port", str(port)])
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def serve_file(path: Path, port: int) -> None:
    app = FastAPI()

    @app.post("/load/{name}")
    async def _load(name: str) -> FileResponse:
        return FileResponse(path, media_type="application/octet-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, http="h11", log_config=None)


def openssl(arguments: list[str], source: Path, target: Path) -> None:
    key = ["-K", "00" * 32, "-iv", "01" * 16]
    command = ["openssl", "enc", *arguments, "-aes-256-cbc", *key, "-in", str(source), "-out", str(target)]
    subprocess.run(command, check=True)


def by_hand(rig: ResourceRig, work: Path) -> Callable[..., None] | None:
    """Return a call of `aws s3 cp` with the store's keys; None where there is no aws."""
    aws = shutil.which("aws")
    if aws is None or subprocess.run([aws, "--version"], capture_output=True, check=False).returncode:
        return None
    access, secret = rig.store.uploader
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "HOME": str(work),
                   "AWS_DEFAULT_REGION": "us-east-1", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}  # fmt: skip

    def copy(source: object, target: object) -> None:
        command = [aws, "--endpoint-url", rig.store.url, "s3", "cp", "--only-show-errors", str(source), str(target)]
        subprocess.run(command, env=environment, check=True)

    return copy


def measure_memory(rig: ResourceRig, port: int, size: int) -> dict[str, float]:
    load(port, "small.bin")
    idle = peak = pss_mb(rig.pid)
    upload(port, "large.bin", size, lambda: pattern(size))
    rig.cached_path("large.bin").unlink()
    jobs = [
        threading.Thread(target=load, args=(port, "large.bin")),
        threading.Thread(target=upload, args=(port, "large-2.bin", size, lambda: pattern(size))),
    ]
    for job in jobs:
        job.start()
    while any(job.is_alive() for job in jobs):
        peak = max(peak, pss_mb(rig.pid))
        time.sleep(0.05)
    for name in ("large.bin", "large-2.bin"):
        rig.cached_path(name).unlink(missing_ok=True)
        rig.big_path(name).unlink(missing_ok=True)
    return {"idle_mb": idle, "peak_mb": peak, "ratio": peak - idle}


def measure(work: Path, size: int, memory_size: int, runs: int) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    with ResourceRig(work / "rig", separate=True) as rig:
        port = int(rig.url.rsplit(":", 1)[1])
        plain, sealed, copied = work / "plain", work / "sealed", work / "copied"
        with plain.open("wb") as stream:
            stream.writelines(pattern(size))
        upload(port, "small.bin", 1000, lambda: iter([bytes(1000)]))
        if memory_size:
            figures["memory above idle, MB"] = measure_memory(rig, port, memory_size)
        upload(port, "m.bin", size, lambda: from_file(plain))
        with file_server(plain) as file_port:
            figures["cached load"] = in_turn(lambda: load(port, "m.bin"), lambda: load(file_port, "m.bin"), runs)
        aws = by_hand(rig, work)
        if aws is None:
            print("aws is not here: uncached load and upload are not compared", file=sys.stderr)
            return figures

        def load_uncached() -> None:
            rig.cached_path("m.bin").unlink()
            load(port, "m.bin")

        def load_by_hand() -> None:
            aws("s3://models/hand.bin", copied)
            openssl(["-d"], copied, work / "result")

        def upload_by_hand() -> None:
            openssl(["-e"], plain, sealed)
            aws(sealed, "s3://models/hand.bin")

        def upload_ours() -> None:
            upload(port, "m.bin", size, lambda: from_file(plain))

        figures["upload"] = in_turn(upload_ours, upload_by_hand, runs)
        figures["uncached load"] = in_turn(load_uncached, load_by_hand, runs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--memory-mb", type=int, default=4096, help="0 leaves it out")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_file:
        serve_file(options.serve_file, options.port)
        return
    with tempfile.TemporaryDirectory(prefix="resources-bench-") as work:
        figures = measure(Path(work), options.mb * MB, options.memory_mb * 1024 * 1024, options.runs)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{'figure':<24}{'ours':>10}{'theirs':>10}{'ratio':>10}{'bar':>8}")
    for name, figure in figures.items():
        first, second, ratio = figure.values()
        print(f"{name:<24}{first:>10.2f}{second:>10.2f}{ratio:>10.2f}{BARS[name]:>8.1f}")


if __name__ == "__main__":
    main()
