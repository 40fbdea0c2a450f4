"""HTTP/1.1 with the bounds that uvicorn leaves to a proxy in front: on a device there is none."""

import asyncio
import json
import socket
from collections.abc import Callable

import h11
import uvicorn
from loguru import logger
from uvicorn.protocols.http.h11_impl import H11Protocol

from azaion_loader.errors import InvalidRequest

# For a request's line and headers together: to arrive, and in size.
HEADERS_TIMEOUT_S = 10.0
HEADERS_MAX_BYTES = 32 << 10
_SLICE_BYTES = 4 << 10


class HttpServer(uvicorn.Server):
    """Says where it listens once it does: uvicorn leaves that out for a socket that it was given."""

    def __init__(self, config: uvicorn.Config, before_shutdown: Callable[[], None]) -> None:
        super().__init__(config)
        self._before_shutdown = before_shutdown

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer those who wait for news, then stop as usual."""
        self._before_shutdown()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections."""
        await super().startup(sockets)
        for listener in sockets or ():
            name = listener.getsockname()
            logger.info("Listening on {}", name if isinstance(name, str) else f"{name[0]}:{name[1]}")


class BoundedHttpProtocol(H11Protocol):
    """Closes a connection whose next request does not arrive in time, and refuses nonsense in our own words."""

    headers_timeout_s = HEADERS_TIMEOUT_S
    _headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Send small answers at once, and start the clock of the first request."""
        super().connection_made(transport)
        # The event loop sets this only on sockets that name their protocol. Without it the second write of an answer,
        # its body, waits some 40 ms for the acknowledgement of its headers.
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        """Pass bytes on; the first of a later request starts its clock, the end of its headers stops it."""
        # In slices: h11 measures what a read leaves over, and one read of the event loop can hold many times the bound.
        first = len(data) if self.conn.their_state is not h11.IDLE else _SLICE_BYTES
        super().data_received(data[:first])
        while first < len(data) and not self.transport.is_closing():
            super().data_received(data[first : first + _SLICE_BYTES])
            first += _SLICE_BYTES
        if self.conn.their_state is not h11.IDLE:
            self._stop_clock()
        elif self._headers_timer is None:
            self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP request, or headers over the bound, as every other failure is answered."""
        too_large = len(self.conn.trailing_data[0]) > HEADERS_MAX_BYTES
        sentence = "The request's headers are too large." if too_large else msg
        content = json.dumps({"detail": sentence, "code": InvalidRequest.code}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        status, reason = (431, b"Request Header Fields Too Large") if too_large else (400, b"Bad Request")
        answer = (
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(content),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in answer))
        self.transport.close()

    def _start_clock(self) -> None:
        self._headers_timer = self.loop.call_later(self.headers_timeout_s, self._give_up)

    def _stop_clock(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _give_up(self) -> None:
        self._headers_timer = None
        if not self.transport.is_closing():
            self.transport.close()
