"""A programmable HTTP/1.1 proxy that misbehaves on demand, to stand between a client and a real server.

It passes everything on byte by byte (so a signature over Host and the other headers stays good), unless a rule fits.
A rule is used at most `times` times; the first one that fits wins::

    with FaultProxy("http://127.0.0.1:9000") as proxy:
        proxy.add(Rule(method="GET", path=r"/models/.*", times=3, cut_after_bytes=100_000))
        client(proxy.url)
        assert proxy.count("GET") == 4

Only plain HTTP with Content-Length or chunked bodies, and one request at a time in a connection.
"""

import re
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from azaion_devkit.http_framing import PIECE_BYTES, BrokenOff, HttpReader, head_bytes

SOCKET_TIMEOUT_S = 120.0

S3_REFUSED = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>InvalidAccessKeyId</Code>'
    b"<Message>The AWS Access Key Id you provided does not exist in our records.</Message></Error>"
)
_SENTENCES = {403: "InvalidAccessKeyId", 412: "PreconditionFailed", 416: "InvalidRange", 503: "SlowDown"}


@dataclass(slots=True)
class Rule:
    """What to do with a request whose method and path (with its query) match.

    `answer_status`: answer at once, with `answer_headers` and `answer_body` (an S3 error document where it is None).
    `strip_headers`: request headers left out on the way up (an unsigned Range, for one).
    `whole_file`: answer 200 with this file, whatever range was asked for, under the real answer's headers.
    `set_headers`: answer headers replaced (or added); a lie about lengths goes here.
    `cut_after_bytes`: the connection breaks after so many bytes of the answer's body (-1: before its head).
    `stall_after_bytes`: silence after so many bytes of the body, until `release` or the client goes.
    `drip_bytes` and `drip_pause_s`: the body in pieces of so many bytes with a pause after each.
    `skip`: matches let through first.
    """

    method: str = ".*"
    path: str = ".*"
    times: int = 1
    skip: int = 0
    answer_status: int | None = None
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer_body: bytes | None = None
    strip_headers: tuple[str, ...] = ()
    whole_file: Path | None = None
    set_headers: dict[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    cut_request_after_bytes: int | None = None
    stall_after_bytes: int | None = None
    drip_bytes: int | None = None
    drip_pause_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request that came by: `path` with its query, `headers` with lower-case names."""

    method: str
    path: str
    headers: dict[str, str]


class FaultProxy:
    """The proxy, on a free loopback port; a context manager.

    `body_bytes` counts bytes of answers' bodies given to clients, `request_bytes` those of requests passed up.
    """

    def __init__(self, upstream: str, *, port: int = 0) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[Request] = []
        self.body_bytes = 0
        self.request_bytes = 0
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._open: set[socket.socket] = set()
        self._stalls = threading.Semaphore(0)

    def start(self) -> str:
        """Accept connections, and return the proxy's address."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self.url

    def stop(self) -> None:
        """Refuse further connections and break those that are open."""
        self._released.set()
        # Only a shutdown wakes a thread that waits in accept().
        _quietly_shut(self._listener)
        self._listener.close()
        with self._lock:
            sockets = list(self._open)
        for connection in sockets:
            _quietly_shut(connection)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add(self, *rules: Rule) -> None:
        """Add rules behind those that are there."""
        with self._lock:
            self._rules.extend(rules)

    def clear(self) -> None:
        """Forget rules, requests and counts."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()
            self.body_bytes = self.request_bytes = 0

    def refuse_keys(self, *, times: int = 1, path: str = ".*") -> None:
        """Answer 403 with an S3 document, as a store does that does not know the keys."""
        self.add(Rule(path=path, times=times, answer_status=403, answer_body=S3_REFUSED))

    def count(self, method: str = ".*", path: str = ".*") -> int:
        """Return how many requests matched."""
        with self._lock:
            return sum(1 for r in self.requests if re.fullmatch(method, r.method) and re.search(path, r.path))

    def release(self) -> None:
        """End every stall; the connections are cut."""
        self._released.set()

    def wait_for_stall(self, timeout_s: float = 10.0) -> bool:
        """Wait until a rule has begun to stall; each stall satisfies one call."""
        return self._stalls.acquire(timeout=timeout_s)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.settimeout(SOCKET_TIMEOUT_S)
            with self._lock:
                self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            # A fresh connection upwards for each request keeps one client's faults from the next one.
            while self._one_exchange(client):
                pass
        except (BrokenOff, OSError, ValueError):
            return
        finally:
            with self._lock:
                self._open.discard(client)
            _quietly_shut(client)
            client.close()

    def _one_exchange(self, client: socket.socket) -> bool:
        reader = HttpReader(client)
        first, headers = reader.head()
        method, path, _ = first.split(" ", 2)
        names = {name.lower(): value for name, value in headers}
        with self._lock:
            self.requests.append(Request(method, path, names))
            rule = self._take_rule(method, path)
        if rule.answer_status is not None:
            return self._answer(client, rule, method, reader, names)
        with socket.create_connection(self._upstream, timeout=SOCKET_TIMEOUT_S) as server:
            with self._lock:
                self._open.add(server)
            try:
                stripped = {name.lower() for name in rule.strip_headers} | {"connection"}
                kept = [(name, value) for name, value in headers if name.lower() not in stripped]
                server.sendall(head_bytes(first, [*kept, ("Connection", "close")]))
                self._pass_request(client, server, reader, names, rule)
                self._pass_answer(client, HttpReader(server), method, rule)
            finally:
                with self._lock:
                    self._open.discard(server)
        return names.get("connection", "").lower() != "close"

    def _take_rule(self, method: str, path: str) -> Rule:
        for rule in self._rules:
            if rule.times > 0 and re.fullmatch(rule.method, method) and re.search(rule.path, path):
                if rule.skip > 0:
                    rule.skip -= 1
                    continue
                rule.times -= 1
                return rule
        return Rule()

    def _answer(
        self, client: socket.socket, rule: Rule, method: str, reader: "HttpReader", names: dict[str, str]
    ) -> bool:
        status = rule.answer_status or 200
        body = rule.answer_body
        if body is None:
            body = f"<Error><Code>{_SENTENCES.get(status, 'InternalError')}</Code></Error>".encode()
        headers = {"Content-Type": "application/xml", "Content-Length": str(len(body)), **rule.answer_headers}
        client.sendall(head_bytes(f"HTTP/1.1 {status} Programmed", [*headers.items(), ("Connection", "close")]))
        if method != "HEAD":
            client.sendall(body)
        # Without this a body still on its way turns the answer into a reset.
        client.shutdown(socket.SHUT_WR)
        if "content-length" in names and "expect" not in names:
            for _ in reader.body(names, 200):
                pass
        return False

    def _pass_request(
        self, client: socket.socket, server: socket.socket, reader: "HttpReader", names: dict[str, str], rule: Rule
    ) -> None:
        if "content-length" not in names and "transfer-encoding" not in names:
            return
        if names.get("expect", "").lower() == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        passed = 0
        for piece in reader.body(names, 200):
            server.sendall(piece)
            passed += len(piece)
            with self._lock:
                self.request_bytes += len(piece)
            if rule.cut_request_after_bytes is not None and passed >= rule.cut_request_after_bytes:
                raise BrokenOff

    def _pass_answer(self, client: socket.socket, reader: "HttpReader", method: str, rule: Rule) -> None:
        if rule.cut_after_bytes == -1:
            raise BrokenOff
        first, headers = reader.head()
        while first.split(" ", 2)[1] == "100":
            first, headers = reader.head()
        status = int(first.split(" ", 2)[1])
        pieces = reader.body({name.lower(): value for name, value in headers}, status, bodyless=method == "HEAD")
        if rule.whole_file is not None:
            first = "HTTP/1.1 200 OK"
            headers = [(n, v) for n, v in headers if n.lower() not in {"content-range", "content-length"}]
            headers.append(("Content-Length", str(rule.whole_file.stat().st_size)))
            pieces = _file_pieces(rule.whole_file)
        replaced = {name.lower() for name in rule.set_headers} | {"connection"}
        headers = [(n, v) for n, v in headers if n.lower() not in replaced]
        headers += [(n, v) for n, v in rule.set_headers.items() if v]
        client.sendall(head_bytes(first, headers))
        self._pass_body(client, pieces, rule)

    def _pass_body(self, client: socket.socket, pieces: Iterable[bytes], rule: Rule) -> None:
        sent = 0
        for piece in pieces:
            rest = piece
            while rest:
                limits = [b - sent for b in (rule.cut_after_bytes, rule.stall_after_bytes) if b is not None]
                if rule.drip_bytes is not None:
                    limits.append(rule.drip_bytes)
                now = rest[: max(0, min([len(rest), *limits]))]
                client.sendall(now)
                sent += len(now)
                rest = rest[len(now) :]
                with self._lock:
                    self.body_bytes += len(now)
                if rule.cut_after_bytes is not None and sent >= rule.cut_after_bytes:
                    raise BrokenOff
                if rule.stall_after_bytes is not None and sent >= rule.stall_after_bytes:
                    self._stalls.release()
                    self._released.wait(SOCKET_TIMEOUT_S)
                    raise BrokenOff
                if rule.drip_bytes is not None and self._released.wait(rule.drip_pause_s):
                    raise BrokenOff


def _file_pieces(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _quietly_shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
