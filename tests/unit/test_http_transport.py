"""The transport's own promises: an end in time, bounds, and nothing added or repeated in secret."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from azaion_devkit.resource_api import DevResourceApi
from azaion_loader import http_sockets
from azaion_loader.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from azaion_loader.http_sockets import CallDeadline, Resolver, call_deadline
from azaion_loader.http_transport import HttpAnswer, HttpTransport

STALL_S = 0.25
TOTAL_S = 0.6

Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport("Resource API", connect_timeout_s=0.5, stall_timeout_s=STALL_S)
    yield made
    made.close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[DevResourceApi]:
    with DevResourceApi(tmp_path / "api") as server:
        yield server


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve each connection with a function; returns the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    open_now: list[socket.socket] = []

    def run(handle: Callable[[socket.socket], None]) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                open_now[:] = [connection]
                try:
                    handle(connection)
                except OSError:
                    continue

    def start(handle: Callable[[socket.socket], None]) -> str:
        threads.append(threading.Thread(target=run, args=(handle,), daemon=True))
        threads[0].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for sock in (listener, *open_now):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(10)


def get(transport: HttpTransport, url: str, *, timeout_s: float = TOTAL_S, repeatable: bool = True) -> HttpAnswer:
    return transport.request("GET", url, timeout_s=timeout_s, max_bytes=1000, repeatable=repeatable)


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    return data


def within(seconds: float, started: float) -> bool:
    return time.monotonic() - started < seconds


def test_an_answer(transport: HttpTransport, api: DevResourceApi) -> None:
    api.fail_next("/x", 207, b"body", {"Content-Type": "Text/Plain; charset=utf-8"})
    answer = get(transport, api.url + "/x")
    assert (answer.status, answer.body, answer.media_type) == (207, b"body", "text/plain")
    assert answer.headers["content-type"] == answer.headers["CONTENT-TYPE"]


def test_connections_are_kept_and_reused(transport: HttpTransport, serve: Serve) -> None:
    connections: list[int] = []

    def handle(connection: socket.socket) -> None:
        connections.append(1)
        while read_request(connection).strip():
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    url = serve(handle)
    assert [get(transport, url).body for _ in range(3)] == [b"ok"] * 3
    assert len(connections) == 1


def test_a_connection_that_was_quiet_for_long_is_not_used_again(
    transport: HttpTransport, api: DevResourceApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(transport, api.url)
    monkeypatch.setattr(http_sockets, "KEEP_ALIVE_S", 0.0)
    get(transport, api.url)
    assert len(api.calls) == 2


@pytest.mark.parametrize("repeatable", [True, False])
def test_one_repeat_on_a_kept_connection_that_ends(transport: HttpTransport, serve: Serve, repeatable: bool) -> None:
    served: list[int] = []

    def handle(connection: socket.socket) -> None:
        # One answer for each connection, then a request is read and the connection ends without a word.
        if read_request(connection).strip():
            served.append(1)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            read_request(connection)

    url = serve(handle)
    assert get(transport, url).body == b"ok"
    if repeatable:
        assert get(transport, url).body == b"ok"
        assert len(served) == 2
    else:
        with pytest.raises(UpstreamUnavailable):
            get(transport, url, repeatable=False)


def test_no_repeat_on_a_fresh_connection(transport: HttpTransport, api: DevResourceApi) -> None:
    api.fail_next("/", close=True, times=5)
    with pytest.raises(UpstreamUnavailable):
        get(transport, api.url)
    assert len(api.calls) == 1


def test_silence_ends_by_the_stall_rule(transport: HttpTransport, api: DevResourceApi) -> None:
    api.fail_next("/", hang=True)
    started = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        get(transport, api.url, timeout_s=30)
    assert within(STALL_S + 1, started)


@pytest.mark.parametrize("part", ["status line", "headers", "body", "chunks", "continue"])
def test_a_drip_ends_by_the_deadline(transport: HttpTransport, serve: Serve, part: str) -> None:
    beginning, drop = {
        "status line": (b"", b"H"),
        "headers": (b"HTTP/1.1 200 OK\r\n", b"X"),
        "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"x"),
        "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    }[part]
    stop = threading.Event()

    def handle(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(beginning)
        while not stop.wait(0.03):
            connection.sendall(drop)

    url = serve(handle)
    started = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        get(transport, url)
    stop.set()
    assert within(TOTAL_S + 1, started)


def test_a_server_that_does_not_read_ends_by_the_stall_rule(transport: HttpTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            transport.request(
                "POST",
                f"http://127.0.0.1:{listener.getsockname()[1]}",
                timeout_s=30,
                max_bytes=10,
                files={"data": ("name", bytes(32 * 1024 * 1024), "application/octet-stream")},
                repeatable=True,
            )
        assert within(STALL_S + 2, started)


def test_an_address_that_swallows_packets(transport: HttpTransport) -> None:
    # A full backlog: the kernel drops further handshakes, as a firewall would.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            get(transport, f"http://127.0.0.1:{address[1]}", timeout_s=30)
        assert within(2, started)
        for filler in fillers:
            filler.close()


def test_addresses_share_the_connect_time_and_one_that_works_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        good = (socket.AF_INET, listener.getsockname())
        refused = (socket.AF_INET, ("127.0.0.1", 1))
        with http_sockets._first_connected([refused, good], time.monotonic() + 5, []) as connected:
            assert connected.getpeername() == listener.getsockname()
    with pytest.raises(ConnectionRefusedError):
        http_sockets._first_connected([refused, refused], time.monotonic() + 5, [])
    with pytest.raises(TimeoutError):
        http_sockets._first_connected([refused], time.monotonic() - 1, [])


def test_a_refused_connection_is_answered_at_once(transport: HttpTransport) -> None:
    started = time.monotonic()
    with pytest.raises(UpstreamUnavailable, match="refused"):
        get(transport, "http://127.0.0.1:1", timeout_s=30)
    assert within(1, started)


@pytest.mark.parametrize("host", ["name.invalid", "a..b", "x" * 64 + ".example"])
def test_a_name_that_does_not_resolve(transport: HttpTransport, host: str) -> None:
    with pytest.raises(UpstreamUnavailable):
        get(transport, f"http://{host}")


def test_a_resolver_that_hangs_holds_one_thread_and_no_call(
    transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    asked: list[str] = []

    def hang(host: str, port: int) -> list[http_sockets.Address]:
        asked.append(host)
        answer.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "late")

    monkeypatch.setattr(http_sockets, "_look_up", hang)
    before = set(threading.enumerate())
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(UpstreamUnavailable, match="not resolved"):
            get(transport, "http://api.example")
    assert within(3, started)
    assert asked == ["api.example"]
    (resolver,) = set(threading.enumerate()) - before
    assert resolver.name == "resolver"
    answer.set()
    resolver.join(10)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("url", ["http://[::1", "http://", "http://:80", "http://a b/", "http://host:99999"])
def test_an_address_that_is_none(transport: HttpTransport, url: str) -> None:
    with pytest.raises(UpstreamUnavailable):
        get(transport, url)


def test_localhost_resolves(api: DevResourceApi, transport: HttpTransport) -> None:
    assert get(transport, f"http://localhost:{api.port}/").status == 404


def test_a_deadline_that_has_passed_lets_nothing_block() -> None:
    left, right = socket.socketpair()
    with left, right, http_sockets.DeadlineSocket(fileno=left.detach()) as sock:
        with call_deadline(CallDeadline(-1, 1, 1, Resolver())), pytest.raises(TimeoutError):
            sock.recv(1)
        right.sendall(b"x")
        assert sock.recv(1) == b"x"


def test_more_than_allowed_is_refused(transport: HttpTransport, api: DevResourceApi) -> None:
    api.fail_next("/", 200, b"x" * 1000)
    assert len(get(transport, api.url).body) == 1000
    api.fail_next("/", 200, b"x" * 1001)
    with pytest.raises(UpstreamError, match="more than 1000 bytes"):
        get(transport, api.url)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_redirects_are_never_followed(transport: HttpTransport, api: DevResourceApi, status: int) -> None:
    api.fail_next("/", status, headers={"Location": api.url + "/elsewhere"})
    with pytest.raises(UpstreamError, match="redirect"):
        get(transport, api.url)
    assert [call.path for call in api.calls] == ["/"]


def test_netrc_adds_no_credentials_and_cookies_are_not_kept(
    transport: HttpTransport, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret-of-netrc\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    url = serve(handle)
    transport.request(
        "GET", url, timeout_s=5, max_bytes=9, headers={"Authorization": "Bearer of-ours"}, repeatable=True
    )
    get(transport, url.replace("http://", "http://user:pass@"))
    assert b"Authorization: Bearer of-ours\r\n" in seen[0]
    assert b"Authorization" not in seen[1]
    assert b"Cookie" not in seen[1]


def test_the_proxy_of_the_environment_is_used(
    transport: HttpTransport, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nvia")

    proxy = serve(handle)
    monkeypatch.setenv("http_proxy", proxy)
    assert get(transport, "http://api.example/x").body == b"via"
    assert seen[0].startswith(b"GET http://api.example/x HTTP/1.1\r\n")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(transport, proxy + "/direct").body == b"via"
    assert seen[1].startswith(b"GET /direct ")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "socks5://127.0.0.1:1", "nonsense://x", "http://"])
def test_a_proxy_that_can_not_be_used(transport: HttpTransport, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UpstreamUnavailable):
        get(transport, "https://api.example")


def test_a_proxy_that_refuses_the_tunnel(
    transport: HttpTransport, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    monkeypatch.setenv("https_proxy", serve(handle))
    with pytest.raises(UpstreamUnavailable, match="proxy"):
        get(transport, "https://api.example")
