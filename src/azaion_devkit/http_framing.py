"""Reads and writes HTTP/1.1 messages on a socket without touching their framing; for the fault proxy."""

import socket
from collections.abc import Iterable

PIECE_BYTES = 128 * 1024
HEAD_LIMIT_BYTES = 64 * 1024


class BrokenOff(Exception):
    """The peer is gone, or the connection is to be cut."""


class HttpReader:
    """Reads heads and bodies of one HTTP/1.1 peer."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._buffer = b""

    def head(self) -> tuple[str, list[tuple[str, str]]]:
        """Return the first line and the headers."""
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > HEAD_LIMIT_BYTES:
                raise BrokenOff
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines[1:]]
        return lines[0], [(name.strip(), value.strip()) for name, _, value in pairs]

    def body(self, names: dict[str, str], status: int, *, bodyless: bool = False) -> Iterable[bytes]:
        """Yield the body, in the framing it came in."""
        if bodyless or status in {204, 304}:
            return
        if names.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunks()
            return
        rest = int(names.get("content-length", str(1 << 62)))
        while rest > 0:
            try:
                piece = self._some()
            except BrokenOff:
                if "content-length" in names:
                    raise
                return
            if len(piece) > rest:
                self._buffer, piece = piece[rest:], piece[:rest]
            rest -= len(piece)
            yield piece

    def _chunks(self) -> Iterable[bytes]:
        size = -1
        while size != 0:
            line = self._take(self._line_bytes())
            size = int(line.split(b";")[0], 16)
            yield line + self._take(size + 2)

    def _line_bytes(self) -> int:
        while b"\r\n" not in self._buffer:
            self._fill()
        return self._buffer.index(b"\r\n") + 2

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _some(self) -> bytes:
        if not self._buffer:
            self._fill()
        piece, self._buffer = self._buffer, b""
        return piece

    def _fill(self) -> None:
        received = self._peer.recv(PIECE_BYTES)
        if not received:
            raise BrokenOff
        self._buffer += received


def head_bytes(first: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a message head."""
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in headers), "", ""]).encode("latin-1")
