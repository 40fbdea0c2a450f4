"""The bounds on a connection: how long headers may take, how large they may be, and how nonsense is answered."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from azaion_loader.http_server import HEADERS_MAX_BYTES, BoundedHttpProtocol, HttpServer

HEADERS_TIMEOUT_S = 0.4


class Impatient(BoundedHttpProtocol):
    headers_timeout_s = HEADERS_TIMEOUT_S


async def app(_scope: Scope, receive: Receive, send: Send) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(size).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
    )
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def serving(protocol: type[BoundedHttpProtocol], listener: socket.socket) -> Iterator[None]:
    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="off", log_config=None, h11_max_incomplete_event_size=HEADERS_MAX_BYTES
    )
    server = HttpServer(config, lambda: None)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("server") / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    with serving(Impatient, listener):
        yield path


def connect(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(address))
    return connection


def read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return status and body of one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            break
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0]):
        body += connection.recv(65536)
    return head.split(b" ")[1], body


def seconds_until_closed(connection: socket.socket, drip: bytes = b"") -> float:
    started = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < 10:
        try:
            if connection.recv(1024) == b"":
                break
        except TimeoutError:
            if drip:
                connection.sendall(drip)
        except (ConnectionResetError, BrokenPipeError):
            break
    return time.monotonic() - started


@pytest.mark.parametrize(("start", "drip"), [(b"", b""), (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n"), (b"G", b"")])
def test_headers_have_a_time_limit_that_dripping_does_not_move(address: Path, start: bytes, drip: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(start)
        assert HEADERS_TIMEOUT_S * 0.7 < seconds_until_closed(connection, drip) < 5


def test_a_later_request_on_the_connection_has_the_same_limit(address: Path) -> None:
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(connection) == (b"200", b"0")
        connection.sendall(b"GET / HTTP/1.1\r\n")
        assert HEADERS_TIMEOUT_S * 0.7 < seconds_until_closed(connection, b"X: y\r\n") < 5


def test_a_slow_body_and_a_pause_between_requests_are_not_headers(address: Path) -> None:
    with connect(address) as connection:
        for _ in range(2):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
            time.sleep(HEADERS_TIMEOUT_S * 1.5)
            connection.sendall(b"2")
            assert read_answer(connection) == (b"200", b"2")
            time.sleep(HEADERS_TIMEOUT_S * 1.5)


def test_large_bodies_arrive_whole(address: Path) -> None:
    size = 3_000_001
    with connect(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        assert read_answer(connection) == (b"200", str(size).encode())
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        assert [read_answer_of_one(connection) for _ in range(3)] == [b"0"] * 3


def read_answer_of_one(connection: socket.socket) -> bytes:
    """Return the one-byte body of one of several answers that may arrive together."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1)
    return connection.recv(1)


@pytest.mark.parametrize("size", [HEADERS_MAX_BYTES + 5000, 200_000, 2_000_000])
def test_headers_are_bounded_however_they_arrive(address: Path, size: int) -> None:
    for whole in (True, False):
        with connect(address) as connection:
            request = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * size + b"\r\n\r\n"
            try:
                for part in [request] if whole else [request[i : i + 1000] for i in range(0, len(request), 1000)]:
                    connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                continue  # refused while it was still coming
            status, body = read_answer(connection)
            assert (status, json.loads(body)["code"]) == (b"431", "invalid_request")


def test_headers_within_the_bound_pass(address: Path) -> None:
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (HEADERS_MAX_BYTES - 200) + b"\r\n\r\n")
        assert read_answer(connection) == (b"200", b"0")


def test_nonsense_is_answered_in_the_house_s_words(address: Path) -> None:
    with connect(address) as connection:
        connection.sendall(b"\0\xff nonsense\r\n\r\n")
        status, body = read_answer(connection)
        assert (status, set(json.loads(body))) == (b"400", {"detail", "code"})


def test_an_answer_never_waits_for_the_acknowledgement_of_its_headers() -> None:
    # Such a wait is 40 ms for each request of a kept connection: asserted by the option, not by the clock.
    options: list[int] = []

    class Noting(BoundedHttpProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            accepted = transport.get_extra_info("socket")
            options.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    listener = socket.create_server(("127.0.0.1", 0))
    with serving(Noting, listener), socket.create_connection(listener.getsockname(), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: loader\r\n\r\n")
        assert read_answer(connection) == (b"200", b"0")
    assert options == [1]
