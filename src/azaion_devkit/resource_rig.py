"""All that `/load` and `/upload` need, on real sockets: Resource API, object store and the loader between them.

For tests, benchmarks and the demonstration. The loader runs in a thread of this process, where a test can look at it,
or (`separate`) as a process of its own, which can be measured and killed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import requests
import uvicorn

from azaion_devkit.object_store import ObjectStore
from azaion_devkit.resource_api import DevResourceApi

if TYPE_CHECKING:
    from azaion_loader.dependencies import Services

EMAIL, PASSWORD = "rig@example.com", "rig-password"
HARDWARE = "CPU: RigCpu. GPU: RigGpu. Memory: 8000000. DriveSerial: R1"
_READY_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 60.0


class ResourceRig:
    """The servers below `root`, with a device account in the loader's DEVICE_CONF; a context manager.

    `environment` adds to the loader's; `store_host` stands for the store in `cdn.yaml` (a proxy before it).
    """

    def __init__(
        self,
        root: Path,
        *,
        environment: Mapping[str, str] | None = None,
        separate: bool = False,
        folders: tuple[str, ...] = ("models",),
    ) -> None:
        self.root = root
        self.data_dir = root / "data"
        self.api = DevResourceApi(root / "api")
        self.store = ObjectStore(root / "store")
        self.user = self.api.add_user(EMAIL, PASSWORD)
        self.folders = folders
        self._extra = dict(environment or {})
        self._separate = separate
        self._loader: _LoaderThread | _LoaderProcess | None = None

    @property
    def url(self) -> str:
        """Where the loader answers."""
        assert self._loader is not None  # noqa: S101 - started
        return f"http://127.0.0.1:{self._loader.port}"

    @property
    def pid(self) -> int:
        """The loader's process."""
        return self._loader.pid if self._loader is not None else 0

    @property
    def services(self) -> "Services":
        """The loader's objects, where it runs in this process."""
        assert isinstance(self._loader, _LoaderThread)  # noqa: S101
        return self._loader.services

    def environment(self) -> dict[str, str]:
        """Return the loader's environment."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "RESOURCE_API_URL": self.api.url,
            "LOADER_DATA_DIR": str(self.data_dir),
            "LOG_DIR": str(self.root / "logs"),
            "IMAGES_PATH": str(self.root / "images.enc"),
            "DEVICE_CONF": str(self.root / "device.conf"),
            "HARDWARE_STRING_FILE": str(self.root / "hardware"),
            # No engine is needed, and none must be touched.
            "DOCKER_CLI": "/bin/false",
            **self._extra,
        }

    def point_store_at(self, host: str | None = None) -> None:
        """Write the `cdn.yaml` that names the store, or `host` in its place."""
        (self.api.root / "cdn.yaml").write_bytes(self.store.cdn_yaml(host))

    def small_path(self, name: str, folder: str = "models") -> Path:
        """Return where the Resource API keeps a small part."""
        return self.api.root / folder / f"{name}.small"

    def big_path(self, name: str, folder: str = "models") -> Path:
        """Return where the object store keeps a big part."""
        return self.store.root / folder / f"{name}.big"

    def cached_path(self, name: str, folder: str = "models") -> Path:
        """Return where the loader caches a big part."""
        return self.data_dir / folder / f"{name}.big"

    def upload(self, name: str, plain: bytes, folder: str = "models") -> requests.Response:
        """Return the answer to an upload."""
        url, files = f"{self.url}/upload/{name}", {"data": ("any", plain)}
        return requests.post(url, files=files, data={"folder": folder}, timeout=_ANSWER_TIMEOUT_S)

    def load(self, name: str, folder: str = "models") -> requests.Response:
        """Return the answer to a load."""
        body = {"filename": name, "folder": folder}
        return requests.post(f"{self.url}/load/{name}", json=body, timeout=_ANSWER_TIMEOUT_S)

    def own_files(self) -> list[str]:
        """Return what lies in the data directory besides notes and locks, relative to it."""
        found = (path for path in self.data_dir.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.data_dir)) for path in found if path.suffix not in {".json", ".lock"})

    def start_loader(self) -> None:
        """Start the loader; it must not run."""
        environment = self.environment()
        self._loader = _LoaderProcess(environment) if self._separate else _LoaderThread(environment)
        self._loader.start()

    def stop_loader(self, *, kill: bool = False) -> None:
        """Stop the loader, as a process with SIGKILL where asked for."""
        loader, self._loader = self._loader, None
        if loader is not None:
            loader.stop(kill=kill)

    def start(self) -> Self:
        """Start everything."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        (self.root / "hardware").write_text(HARDWARE)
        conf = self.root / "device.conf"
        conf.touch(mode=0o600)
        conf.write_text(f"AZAION_DEVICE_EMAIL={EMAIL}\nAZAION_DEVICE_PASSWORD={PASSWORD}\n")
        self.api.start()
        self.store.start()
        for folder in self.folders:
            self.store.make_bucket(folder)
            (self.api.root / folder).mkdir(parents=True, exist_ok=True)
        self.point_store_at()
        self.start_loader()
        return self

    def stop(self) -> None:
        """Stop everything."""
        self.stop_loader()
        self.store.stop()
        self.api.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _LoaderThread:
    """The loader under uvicorn in a thread."""

    pid = os.getpid()

    def __init__(self, environment: Mapping[str, str]) -> None:
        from azaion_loader.dependencies import Services  # noqa: PLC0415 - not for a separate loader
        from azaion_loader.main import create_app  # noqa: PLC0415
        from azaion_loader.settings import Settings  # noqa: PLC0415

        self.services = Services(Settings.from_environment(environment))
        config = uvicorn.Config(
            create_app(services=self.services), http="h11", ws="none", lifespan="on", log_config=None,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)

    def start(self) -> None:
        self._thread.start()
        _wait_until_healthy(self.port)

    def stop(self, *, kill: bool = False) -> None:
        self._server.should_exit = True
        self._server.force_exit = kill
        self._thread.join()
        self._listener.close()


class _LoaderProcess:
    """The loader as devices run it: the command, in a process of its own."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        command = "import sys; from azaion_loader.cli import main; sys.exit(main())"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--port", str(self.port)],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _wait_until_healthy(self.port)

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self._process.wait(30)


def _wait_until_healthy(port: int) -> None:
    give_up = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return
        time.sleep(0.02)
    raise TimeoutError("the loader did not start")


def pattern(size: int, seed: int = 0) -> Iterator[bytes]:
    """Yield `size` bytes that differ from place to place, so that a wrong offset can't pass for the right one."""
    # 251 is prime to every block and chunk size; the counter makes each stretch its own.
    for number in range(0, size, 65536):
        block = (seed * 1_000_003 + number).to_bytes(12, "big") + bytes(range(251)) * 262
        yield block[: min(65536, size - number)]
