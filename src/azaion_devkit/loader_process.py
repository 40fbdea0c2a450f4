"""Runs the real service as a process of its own, for the demo, tests and benchmarks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 120.0
POLL_S = 0.05


class LoaderError(RuntimeError):
    """The service did not start, or an answer was not what was asked for."""


class LoaderProcess:
    """`azaion-loader serve` on a free loopback port; a context manager.

    `environment` is added to the caller's. What the service prints goes to `log`.
    """

    def __init__(self, data_dir: Path, environment: Mapping[str, str], *, port: int = 0) -> None:
        self.data_dir = data_dir
        self.port = port or _free_port()
        self.log = data_dir / "service.log"
        self.environment = dict(environment)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The service's base address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The service's process."""
        if self.process is None:
            raise LoaderError("the loader is not running")
        return self.process.pid

    def start(self) -> Self:
        """Start the service and wait for the first answer of `/health`. Raises LoaderError."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        environment = {"LOADER_DATA_DIR": str(self.data_dir), "LOG_DIR": str(self.data_dir / "Logs")}
        command = [sys.executable, "-m", "azaion_loader.cli", "serve", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | environment | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        give_up = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < give_up and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/health", timeout=2).ok:
                    return self
            except requests.ConnectionError:
                time.sleep(POLL_S)
        self.kill()
        raise LoaderError(f"The loader did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> int:
        """End the service as an init system does, and return its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LoaderError("The loader did not end after SIGTERM") from None
        self.process = None
        return code

    def kill(self) -> None:
        """End the service as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
            self.process = None

    def get(self, path: str) -> Any:
        """Return the JSON of a GET."""
        return requests.get(self.url + path, timeout=CALL_TIMEOUT_S).json()

    def post(self, path: str, body: Mapping[str, Any]) -> requests.Response:
        """Post JSON and return the answer."""
        return requests.post(self.url + path, json=body, timeout=CALL_TIMEOUT_S)

    def unlock(self, email: str, password: str, *, refresh: bool = False) -> requests.Response:
        """Post `/unlock`."""
        return self.post("/unlock?refresh=true" if refresh else "/unlock", {"email": email, "password": password})

    def wait_for_unlock(self, timeout_s: float = 300.0) -> tuple[dict[str, Any], list[str]]:
        """Poll until the run is over; return the last status and the states seen on the way, each once."""
        states: list[str] = []
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            status = self.get("/unlock/status")
            if not states or states[-1] != status["state"]:
                states.append(status["state"])
            if status["state"] in {"ready", "error", "idle"}:
                return status, states
            time.sleep(POLL_S)
        raise LoaderError(f"The unlock run did not end in {timeout_s} s: {json.dumps(self.get('/unlock/progress'))}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill() if error is not None else self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
