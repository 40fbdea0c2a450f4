"""`azaion-loader serve` as a real process on a real socket: start, hostile connections, end."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

STARTS_WITHIN_S = 30.0


class Service:
    """A running service."""

    def __init__(self, process: subprocess.Popen[str], port: int, lines: list[str]) -> None:
        self.process = process
        self.port = port
        self.lines = lines

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, path: str, method: str = "GET", body: str | None = None) -> tuple[int, dict[str, object]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def raw(self, request: bytes) -> bytes:
        with self.connect() as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))


def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(sys.path),
        "LOADER_DATA_DIR": str(tmp_path),
        "DEVICE_CONF": str(tmp_path / "device.conf"),
    }


@contextlib.contextmanager
def serving(tmp_path: Path, *arguments: str, **variables: str) -> Iterator[Service]:
    command = [sys.executable, "-m", "azaion_loader.cli", "serve", *(arguments or ("--port", "0"))]
    process = subprocess.Popen(
        command, env=environment(tmp_path) | variables, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    lines: list[str] = []
    ready = threading.Event()
    port: list[int] = [0]

    def read() -> None:
        for line in process.stderr or ():
            lines.append(line)
            if match := re.search(r"Listening on .*?(?::(\d+))?$", line.rstrip()):
                port[0] = int(match[1] or 0)
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(STARTS_WITHIN_S), "".join(lines)
        assert process.poll() is None, "".join(lines)
        yield Service(process, port[0], lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        reader.join(10)
        if process.stderr is not None:
            process.stderr.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


def test_health_and_status(service: Service) -> None:
    assert service.ask("/health") == (200, {"status": "healthy"})
    status, body = service.ask("/status")
    assert (status, body["authenticated"]) == (200, False)


def test_unlock_status_and_progress_before_any_run(service: Service) -> None:
    assert service.ask("/unlock/status") == (200, {"state": "idle", "error": None})
    status, body = service.ask("/unlock/progress")
    assert (status, body["state"], body["percent"]) == (200, "idle", 0.0)


def test_invalid_login(service: Service) -> None:
    status, body = service.ask("/login", "POST", '{"email": "", "password": "hunter2"}')
    assert (status, body["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path) as running, running.connect() as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += idle.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        running.process.send_signal(number)
        assert running.process.wait(10) == 0
        assert time.monotonic() - started < 5
        assert idle.recv(65536) == b""
    assert "Traceback" not in "".join(running.lines)
    assert any("Finished server process" in line for line in running.lines)
    log = next((tmp_path / "Logs").glob("log_loader_*.txt")).read_text()
    assert "Finished server process" in log


def test_a_slow_client_does_not_hold_the_end_up(tmp_path: Path) -> None:
    with serving(tmp_path) as running, running.connect() as slow:
        slow.sendall(
            b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\r\n{"
        )
        assert running.ask("/health")[0] == 200
        running.process.terminate()
        assert running.process.wait(9) == 0


def test_a_read_only_log_directory_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(tmp_path, LOG_DIR=str(tmp_path / "file" / "Logs")) as running:
        assert running.ask("/health")[0] == 200
        assert running.ask("/nope")[0] == 404
    assert sum("No log file in" in line for line in running.lines) == 1


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "loader.sock"
    with serving(tmp_path, "--uds", str(path)) as running:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: loader\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.endswith(b'{"status":"healthy"}')
        running.process.terminate()
        assert running.process.wait(10) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("DOCKER_TIMEOUT_S", "-1"), ("LOADER_API_TOKEN_FILE", "/nonexistent"), ("API_VERSION", "a b")],
)
def test_bad_settings(tmp_path: Path, variable: str, value: str) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "azaion_loader.cli", "serve", "--port", "0"],
        env=environment(tmp_path) | {variable: value},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert outcome.returncode == 2
    assert outcome.stderr.startswith(f"azaion-loader: {variable}")
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "Logs").exists()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 40_000, b"431"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 8_000 + b"\r\n", b"431"),
        (b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_request(service: Service, request_bytes: bytes, status: bytes) -> None:
    answer = service.raw(request_bytes)
    assert answer.split(b" ")[1] == status
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"detail", "code"}
    assert service.ask("/health")[0] == 200


def test_a_body_over_the_bound_is_told_so(service: Service) -> None:
    status, body = service.ask("/login", "POST", "x" * 200_000)
    assert (status, body["code"]) == (413, "too_large")
    # Far over it the answer may come before the client has sent all, which not every client survives.
    head = b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n"
    assert service.raw(head).startswith(b"HTTP/1.1 413")


def test_slow_clients_do_not_hold_health_up(service: Service) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(service.connect())
            connection.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        slowest = 0.0
        for _ in range(20):
            started = time.monotonic()
            assert service.ask("/health")[0] == 200
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 2.0


def test_a_second_request_on_a_connection(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    for _ in range(3):
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"healthy"}'
    connection.close()


def test_uvicorn_serves_the_same_app(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "azaion_loader.main:app", "--port", str(port)],
        env=environment(tmp_path),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        answer = None
        while answer is None and time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                answer = Service(process, port, []).ask("/health")
        assert answer == (200, {"status": "healthy"})
    finally:
        process.terminate()
        process.wait(15)
