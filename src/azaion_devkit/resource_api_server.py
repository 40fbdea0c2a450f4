"""The sockets of the development Resource API: connections, HTTP, and faults shown on the wire."""

import contextlib
import http
import socket
import socketserver
import ssl
import struct
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from azaion_devkit.resource_api_handler import UPLOAD_LIMIT_BYTES, Answer, Service
from azaion_devkit.resource_api_state import Call, Fault, Script

_IDLE_TIMEOUT_S = 60.0
_FORM_OVERHEAD_BYTES = 64 * 1024


class DevServer(HTTPServer):
    """One thread for each connection; all of them end with the server."""

    request_queue_size = 256
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], service: Service, script: Script, ssl_context: ssl.SSLContext | None
    ) -> None:
        self.service = service
        self.script = script
        self.stopping = threading.Event()
        self._ssl_context = ssl_context
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer asks the resolver for its own name here, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        if self._ssl_context is not None:
            # The handshake belongs to the connection's thread: a silent client must not stop the others.
            connection = self._ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)  # noqa: S101 - a TCP server's requests are sockets
        thread = threading.Thread(target=self._serve, args=(request, client_address), daemon=True)
        with self._lock:
            self._connections[request] = thread
        thread.start()

    def _serve(self, connection: socket.socket, address: object) -> None:
        # A client that goes away in the middle is part of the game here.
        with contextlib.suppress(OSError):
            self.finish_request(connection, address)
        with self._lock:
            self._connections.pop(connection, None)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_WR)
        connection.close()

    def end_connections(self) -> None:
        """Wake and end every connection, and wait for its thread."""
        self.stopping.set()
        with self._lock:
            open_now = dict(self._connections)
        for connection in open_now:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in open_now.values():
            thread.join(10.0)


class _Handler(BaseHTTPRequestHandler):
    """Reads one request after the other from a connection and sends what the service, or the script, says."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_TIMEOUT_S
    server: DevServer
    close_connection: bool

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.do_handshake()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Say nothing: tests read `calls` instead."""

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > UPLOAD_LIMIT_BYTES + _FORM_OVERHEAD_BYTES:
            self.close_connection = True
            self._finish(Answer(413), Fault("/"), None)
            return
        body = self.rfile.read(length)
        fault = self.server.script.take(self.command, self.path) or Fault("/")
        if fault.delay_s:
            self.server.stopping.wait(fault.delay_s)
        if fault.hang:
            self._note(0, None)
            self.server.stopping.wait()
        dropped = fault.hold is not None and not fault.hold.wait(self.server.stopping)
        if dropped or fault.hang or fault.close or fault.reset:
            self._break_off(fault)
            return
        email = None
        if fault.status is not None:
            answer = Answer(fault.status, fault.body, dict(fault.headers))
        else:
            answer, email = self.server.service.answer(self.command, self.path, dict(self.headers.items()), body)
        self._finish(answer, fault, email)

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 - named by the base class

    def _note(self, status: int, email: str | None) -> None:
        self.server.script.note(Call(self.command, self.path, status, email))

    def _break_off(self, fault: Fault) -> None:
        if not fault.hang:
            self._note(0, None)
        if fault.reset:
            # Linger of no time at all: close() sends RST in place of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def _finish(self, answer: Answer, fault: Fault, email: str | None) -> None:
        self._note(answer.status, email)
        data = fault.raw if fault.raw is not None else self._rendered(answer)
        if fault.cut_bytes is not None:
            data = data[: fault.cut_bytes]
        if fault.raw is not None or fault.cut_bytes is not None:
            self.close_connection = True
        if not fault.drip_s:
            self.wfile.write(data)
            return
        for start in range(0, len(data), fault.drip_bytes):
            self.wfile.write(data[start : start + fault.drip_bytes])
            if self.server.stopping.wait(fault.drip_s):
                break

    def _rendered(self, answer: Answer) -> bytes:
        """Return the answer as it goes over the wire."""
        reason = http.HTTPStatus(answer.status).phrase
        headers = {"Date": self.date_time_string(), "Content-Length": str(len(answer.body)), **answer.headers}
        if self.close_connection:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + answer.body
