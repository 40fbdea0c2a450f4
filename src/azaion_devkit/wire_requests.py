"""HTTP/1.1 requests as they stand on the wire (RFC 9112), for a proxy that passes on every byte as it came.

Just enough to tell requests on a kept-alive connection apart: heads, bodies by length or in chunks.
"""

import re
import socket
from collections.abc import Iterator

PIECE_BYTES = 64 * 1024
HEAD_LIMIT_BYTES = 64 * 1024


class RequestReader:
    """Requests off one connection."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._held = b""

    def head(self) -> bytes | None:
        """Return the next request's head with its empty line; None at the end of the connection."""
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > HEAD_LIMIT_BYTES or not self._more():
                return None
        head, self._held = self._held[: end + 4], self._held[end + 4 :]
        return head

    def body(self, head: bytes) -> Iterator[bytes]:
        """Yield the body as it stands on the wire, the frames of chunks included."""
        if re.search(rb"\r\ntransfer-encoding:[^\r]*chunked", head, re.I):
            size = -1
            while size != 0:
                line = self._line()
                size = int(line.split(b";")[0], 16)
                yield line
                yield from self._exactly(size + 2)
        elif match := re.search(rb"\r\ncontent-length: *(\d+)", head, re.I):
            yield from self._exactly(int(match.group(1)))

    def has_ended(self) -> bool:
        """Whether the client has gone, with nothing of it left to read."""
        try:
            return not self._held and not self._source.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def rest(self) -> Iterator[bytes]:
        """Yield everything that comes, until the end of the connection."""
        while self._held or self._more():
            piece, self._held = self._held, b""
            yield piece

    def _line(self) -> bytes:
        while (end := self._held.find(b"\r\n")) < 0:
            if not self._more():
                raise ConnectionResetError
        line, self._held = self._held[: end + 2], self._held[end + 2 :]
        return line

    def _exactly(self, length: int) -> Iterator[bytes]:
        while length:
            if not self._held and not self._more():
                raise ConnectionResetError
            piece, self._held = self._held[:length], self._held[length:]
            length -= len(piece)
            yield piece

    def _more(self) -> bool:
        data = self._source.recv(PIECE_BYTES)
        self._held += data
        return bool(data)
