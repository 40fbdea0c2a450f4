"""Sockets that know when the call they serve must end.

A call sets its CallDeadline for the thread; until it leaves, each blocking operation of these sockets (connect, TLS
handshake, send, receive) waits for at most the stall time-out and never past the deadline. The classes plug into
urllib3: two connection classes, two pools, and a TLS context that makes sockets of the right kind.
"""

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, cast

from urllib3.connection import HTTPConnection, HTTPSConnection, ProxyConfig
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.ssl_ import create_urllib3_context

# Middleboxes forget quiet connections without telling either side; a call on one would only find that out by its
# time-out. Orchestrators poll in seconds, so a short life loses nothing.
KEEP_ALIVE_S = 15.0
_SEND_BYTES = 256 * 1024
_SHORTEST_TRY_S = 0.5

Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class DeadlineExpiredError(TimeoutError):
    """The call's time is up."""


class Resolver:
    """Resolves names with a time-out: at most one thread waits for a name, however many calls ask."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, int], Future[list[Address]]] = {}
        self._lock = threading.Lock()

    def resolve(self, host: str, port: int, timeout_s: float) -> list[Address]:
        """Return the addresses in the resolver's order. Raises socket.gaierror, also when the time is up."""
        if _is_address(host):
            return _look_up(host, port)
        with self._lock:
            pending = self._pending.get((host, port))
            if pending is None:
                pending = self._pending[host, port] = Future()
                threading.Thread(target=self._work, args=(host, port, pending), name="resolver", daemon=True).start()
        try:
            return pending.result(timeout_s)
        except TimeoutError as err:
            raise socket.gaierror(socket.EAI_AGAIN, "the resolver did not answer in time") from err

    def _work(self, host: str, port: int, pending: Future[list[Address]]) -> None:
        try:
            addresses = _look_up(host, port)
        except (OSError, UnicodeError) as err:
            outcome: BaseException | None = err
        else:
            outcome = None
        with self._lock:
            del self._pending[host, port]
        if outcome is None:
            pending.set_result(addresses)
        else:
            pending.set_exception(outcome)


class CallDeadline:
    """The time limits of one call, in seconds from now."""

    def __init__(self, timeout_s: float, connect_timeout_s: float, stall_timeout_s: float, resolver: Resolver) -> None:
        now = time.monotonic()
        self.ends_at = now + timeout_s
        self.connect_timeout_s = connect_timeout_s
        self.stall_timeout_s = stall_timeout_s
        self.resolver = resolver
        # Whether the request went out on a connection that had served an earlier one.
        self.on_kept_connection = False

    def wait_s(self) -> float:
        """Return how long one operation may block now. Raises DeadlineExpiredError."""
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise DeadlineExpiredError("the call's time is up")
        return min(left, self.stall_timeout_s)


_call: ContextVar[CallDeadline | None] = ContextVar("call_deadline", default=None)


@contextlib.contextmanager
def call_deadline(call: CallDeadline) -> Iterator[None]:
    """Hold the sockets used by this thread to `call` until the block is left."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def _limit(sock: socket.socket) -> None:
    call = _call.get()
    if call is not None:
        sock.settimeout(call.wait_s())


class DeadlineSocket(socket.socket):
    """A plain socket under the call's deadline."""

    def recv(self, *args: Any) -> bytes:
        _limit(self)
        return super().recv(*args)

    def recv_into(self, *args: Any) -> int:
        _limit(self)
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:
        _limit(self)
        return super().send(*args)

    def sendall(self, data: Any, *args: Any) -> None:
        # The original's time-out is for all of the data together: a large body over a slow link is no stall.
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while sent < len(rest):
                sent += self.send(rest[sent : sent + _SEND_BYTES], *args)


class DeadlineTLSSocket(ssl.SSLSocket):
    """A TLS socket under the call's deadline: all reads and writes go through these three."""

    def do_handshake(self, block: bool = False) -> None:
        _limit(self)
        super().do_handshake(block)

    def read(self, *args: Any) -> Any:
        _limit(self)
        return super().read(*args)

    def send(self, *args: Any) -> int:
        _limit(self)
        return super().send(*args)


def tls_context() -> ssl.SSLContext:
    """Return a context whose sockets keep to the deadline; trust is loaded into it by urllib3, or by the caller."""
    context = create_urllib3_context()
    context.sslsocket_class = DeadlineTLSSocket
    return context


class DeadlineHTTPConnection(HTTPConnection):
    """A connection that is made, and used, under the call's deadline."""

    _last_used_at = 0.0

    def _new_conn(self) -> socket.socket:
        return _connected(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _note_use(self.sock is not None)
        self._last_used_at = time.monotonic()
        super().request(*args, **kwargs)

    @property
    def is_connected(self) -> bool:
        return super().is_connected and time.monotonic() - self._last_used_at < KEEP_ALIVE_S


class DeadlineHTTPSConnection(HTTPSConnection):
    """The same over TLS; each connection has a context of its own, so that trust is never shared by accident."""

    _last_used_at = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ssl_context = tls_context()

    def _new_conn(self) -> socket.socket:
        return _connected(self)

    def _connect_tls_proxy(self, hostname: str, sock: socket.socket) -> ssl.SSLSocket:
        context = tls_context()
        if self.ca_certs or self.ca_cert_dir:
            context.load_verify_locations(self.ca_certs, self.ca_cert_dir)
        else:
            context.load_default_certs()
        config = cast("ProxyConfig", self.proxy_config)
        self.proxy_config = config._replace(ssl_context=context)
        return super()._connect_tls_proxy(hostname, sock)

    def request(self, *args: Any, **kwargs: Any) -> None:
        # urllib3 connects HTTPS before it asks for the request, so a socket alone says nothing: see _last_used_at.
        _note_use(self._last_used_at > 0.0)
        self._last_used_at = time.monotonic()
        super().request(*args, **kwargs)

    def close(self) -> None:
        self._last_used_at = 0.0
        super().close()

    @property
    def is_connected(self) -> bool:
        return super().is_connected and time.monotonic() - self._last_used_at < KEEP_ALIVE_S


class DeadlineHTTPConnectionPool(HTTPConnectionPool):
    """Keeps DeadlineHTTPConnections."""

    ConnectionCls = DeadlineHTTPConnection


class DeadlineHTTPSConnectionPool(HTTPSConnectionPool):
    """Keeps DeadlineHTTPSConnections."""

    ConnectionCls = DeadlineHTTPSConnection


def _note_use(kept: bool) -> None:
    call = _call.get()
    if call is not None:
        call.on_kept_connection = kept


def _connected(connection: HTTPConnection) -> socket.socket:
    """Connect within the call's connect time-out, over all addresses together, name resolution included.

    Raises urllib3's NameResolutionError, ConnectTimeoutError or NewConnectionError.
    """
    call = _call.get()
    if call is None:
        raise RuntimeError("a deadline connection was used outside a call")
    host = connection._dns_host.strip("[]")
    try:
        ends_at = time.monotonic() + min(call.connect_timeout_s, call.wait_s())
        addresses = call.resolver.resolve(host, connection.port, ends_at - time.monotonic())
        return _first_connected(addresses, ends_at, connection.socket_options or [])
    except socket.gaierror as err:
        raise NameResolutionError(host, connection, err) from err
    except UnicodeError as err:
        raise NameResolutionError(host, connection, socket.gaierror(socket.EAI_NONAME, "not a name")) from err
    except TimeoutError as err:
        raise ConnectTimeoutError(connection, f"no connection to {host} in time") from err
    except OSError as err:
        raise NewConnectionError(connection, f"no connection to {host}: {err}") from err


def _first_connected(addresses: list[Address], ends_at: float, options: list[tuple[int, int, Any]]) -> socket.socket:
    """Try the addresses in turn; each gets its share of the time, so that one that swallows packets can't take all."""
    last: OSError = TimeoutError("no address was tried")
    for index, (family, address) in enumerate(addresses):
        left = ends_at - time.monotonic()
        if left <= 0:
            break
        sock = DeadlineSocket(family, socket.SOCK_STREAM)
        try:
            for option in options:
                sock.setsockopt(*option)
            sock.settimeout(min(left, max(left / (len(addresses) - index), _SHORTEST_TRY_S)))
            sock.connect(address)
        except OSError as err:
            sock.close()
            last = err
        else:
            return sock
    raise last


def _look_up(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, cast("tuple[Any, ...]", address)) for family, _, _, _, address in found]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
