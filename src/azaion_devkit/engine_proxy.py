"""A programmable fault proxy in front of a Docker engine's unix socket.

    with EngineProxy(host, Path("/tmp/p.sock")) as proxy:
        proxy.break_off("/images/load", nth=2, after_bytes=100_000)     # DOCKER_HOST=proxy.host

A connection that is upgraded is passed through from there on. Each rule fires once, at the nth
request whose path holds the rule's text, counted from the proxy's start; requests that no rule names pass unchanged.
"""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from azaion_devkit.hold import Hold
from azaion_devkit.wire_requests import PIECE_BYTES, RequestReader

JOIN_TIMEOUT_S = 5.0

Action = Literal["break", "hang", "answer", "hold", "late"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its method, its path with the query, and whether a rule fired on it."""

    method: str
    path: str
    faulted: bool


@dataclass(slots=True)
class _Rule:
    path: str
    nth: int
    action: Action
    after_bytes: int | None
    status: int = 500
    message: str = ""
    hold: Hold | None = None
    late_s: float = 0.0
    seen: int = 0


class EngineProxy:
    """Listens on `socket_path` and passes everything on to the engine at `upstream` (`unix:///…`)."""

    def __init__(self, upstream: str, socket_path: Path) -> None:
        self._upstream = upstream.removeprefix("unix://")
        self._path = socket_path
        self._rules: list[_Rule] = []
        self._requests: list[Request] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    @property
    def host(self) -> str:
        """The value for DOCKER_HOST."""
        return f"unix://{self._path}"

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order of their heads."""
        with self._lock:
            return list(self._requests)

    def count(self, path: str) -> int:
        """Return the number of requests whose path holds `path`."""
        return sum(path in request.path for request in self.requests)

    def break_off(self, path: str, *, nth: int = 1, after_bytes: int | None = 0) -> None:
        """Close both sides after so many bytes of the body; None: after all of it, instead of the answer."""
        self._add(_Rule(path, nth, "break", after_bytes))

    def hang(self, path: str, *, nth: int = 1, after_bytes: int | None = 0) -> None:
        """Take no more after so many bytes of the body, and answer nothing; None: take all, and answer nothing."""
        self._add(_Rule(path, nth, "hang", after_bytes))

    def answer(self, path: str, *, status: int, message: str, nth: int = 1) -> None:
        """Answer as the engine answers a fault, once the body is read; the engine does not see the request."""
        self._add(_Rule(path, nth, "answer", None, status, message))

    def finish_late(self, path: str, *, late_s: float, nth: int = 1) -> None:
        """Lose the client before the last bytes of a body, and give them to the engine so much later all the same."""
        self._add(_Rule(path, nth, "late", None, late_s=late_s))

    def hold(self, path: str, *, nth: int = 1, after_bytes: int = 0) -> Hold:
        """Keep a request, after so many bytes of its body, until the returned hold is released or dropped."""
        hold = Hold()
        self._add(_Rule(path, nth, "hold", after_bytes, hold=hold))
        return hold

    def clear(self) -> None:
        """Forget the rules that have not fired."""
        with self._lock:
            self._rules.clear()

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for item in sockets:
            _shut(item)
        for thread in list(self._threads):
            thread.join(JOIN_TIMEOUT_S)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _add(self, rule: _Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:  # the listener was shut down
                return
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        engine = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with self._lock:
            self._sockets |= {client, engine}
        muted = threading.Event()
        pump: threading.Thread | None = None
        try:
            engine.connect(self._upstream)
            pump = threading.Thread(target=self._pump, args=(engine, client, muted), daemon=True)
            pump.start()
            reader = RequestReader(client)
            while (head := reader.head()) is not None:
                if not self._pass(head, reader, client, engine, muted):
                    break
        except OSError:
            pass  # a side went away: what the proxy is there to show
        finally:
            _shut(engine)
            _shut(client)
            if pump is not None:
                pump.join(JOIN_TIMEOUT_S)
            with self._lock:
                self._sockets -= {client, engine}
            engine.close()
            client.close()

    def _pass(  # noqa: PLR0912
        self, head: bytes, reader: RequestReader, client: socket.socket, engine: socket.socket, muted: threading.Event
    ) -> bool:
        """Pass one request on, or do to it what a rule says; False ends the connection."""
        rule = self._note(head)
        if rule is None:
            engine.sendall(head)
            if re.search(rb"\r\nupgrade:", head, re.I):
                for piece in reader.rest():
                    engine.sendall(piece)
                return False
            for piece in reader.body(head):
                engine.sendall(piece)
            return True
        if rule.action == "answer":
            for _ in reader.body(head):
                pass
            body = ('{"message": "' + rule.message.replace("\\", "\\\\").replace('"', '\\"') + '"}\n').encode()
            lines = f"HTTP/1.1 {rule.status} Fault\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            client.sendall(lines.encode() + b"Connection: close\r\n\r\n" + body)
            return False
        if rule.hold is not None:
            return self._keep(rule, rule.hold, head, reader, engine)
        muted.set()
        engine.sendall(head)
        if rule.action == "late":
            self._finish_late(rule.late_s, reader.body(head), client, engine)
            return False
        left = rule.after_bytes
        if left != 0:
            for piece in reader.body(head):
                engine.sendall(piece if left is None else piece[:left])
                if left is not None:
                    left = max(left - len(piece), 0)
                    if left == 0:
                        break
        if rule.action == "hang":
            self._stopping.wait()
        return False

    def _keep(self, rule: _Rule, hold: Hold, head: bytes, reader: RequestReader, engine: socket.socket) -> bool:
        """Pass the first bytes of a body on, wait for the decision, then pass the rest; False ends the connection."""
        left = rule.after_bytes or 0
        body = reader.body(head)
        if left:
            engine.sendall(head)
        while left > 0 and (piece := next(body, None)) is not None:
            engine.sendall(piece)
            left -= len(piece)
        # What a client that is gone by then had asked for is lost, as it is in a socket that nobody reads.
        if not hold.wait(self._stopping) or reader.has_ended():
            return False
        if not rule.after_bytes:
            engine.sendall(head)
        for piece in body:
            engine.sendall(piece)
        return True

    def _finish_late(self, late_s: float, body: Iterator[bytes], client: socket.socket, engine: socket.socket) -> None:
        last = b""
        for piece in body:
            engine.sendall(last)
            last = piece
        _shut(client)
        self._stopping.wait(late_s)
        engine.sendall(last)
        # An engine that sees its client go may stop; the pump takes its answer meanwhile.
        self._stopping.wait(late_s)

    def _note(self, head: bytes) -> _Rule | None:
        method, path = head.split(b" ", 2)[:2]
        text = path.decode("latin-1")
        fired: _Rule | None = None
        with self._lock:
            for rule in self._rules:
                if rule.path in text:
                    rule.seen += 1
                    if rule.seen == rule.nth:
                        fired = fired or rule
            if fired is not None:
                self._rules.remove(fired)
            self._requests.append(Request(method.decode("latin-1"), text, fired is not None))
        return fired

    def _pump(self, engine: socket.socket, client: socket.socket, muted: threading.Event) -> None:
        """Carry answers back until the engine ends the connection, or goes away in the middle of it."""
        try:
            while data := engine.recv(PIECE_BYTES):
                if not muted.is_set():
                    client.sendall(data)
            if not muted.is_set():
                client.shutdown(socket.SHUT_WR)
        except OSError:
            # A killed engine resets a connection that it had not accepted yet: the client must learn of it.
            if not muted.is_set():
                _shut(client)


def _shut(item: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not connected any more
        item.shutdown(socket.SHUT_RDWR)
