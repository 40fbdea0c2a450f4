"""Calls to a running loader, over TCP or its Unix socket, for the commands.

The standard library's client: nothing else is needed, no proxy of the environment gets in between, and bodies of any
size stream both ways.
"""

import contextlib
import http.client
import json
import os
import secrets
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

_CONNECT_S = 5.0
# A load or an upload waits for two other services, each with limits of its own.
_ANSWER_S = 900.0
_ERROR_MAX_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18


class CommandError(Exception):
    """A command can't be done; `code` is a stable word, the message a sentence."""

    def __init__(self, code: str, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Client:
    """The loader at `url`, or behind the Unix socket `uds`; `token` is its bearer token. Connects for each call."""

    def __init__(self, url: str, uds: Path | None = None, token: str | None = None) -> None:
        """Raises CommandError for an address that can't be used."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as err:
            raise CommandError("usage", f"{url} is not an address.") from err
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise CommandError("usage", f"{url} is not an address like http://127.0.0.1:8080.")
        self._host, self._port, self._tls = parts.hostname, port, parts.scheme == "https"
        self._base = parts.path.rstrip("/")
        self._uds = uds
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.where = str(uds) if uds is not None else f"{parts.scheme}://{parts.netloc}"

    def get(self, path: str, *, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        """Return the JSON that a GET answers. Raises CommandError."""
        with self._answer("GET", path, None, {}, timeout_s) as answer:
            return _object(answer.read())

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON that a POST of JSON answers. Raises CommandError."""
        content = json.dumps(body).encode()
        with self._answer("POST", path, content, {"Content-Type": "application/json"}, _ANSWER_S) as answer:
            return _object(answer.read())

    def load(self, folder: str, name: str, out: Path, on_bytes: Callable[[int, int], None]) -> int:
        """Write a model to `out`, whole or not at all; return its length. Raises CommandError, OSError."""
        content = json.dumps({"filename": name, "folder": folder}).encode()
        path = f"/load/{quote(name, safe='')}"
        with self._answer("POST", path, content, {"Content-Type": "application/json"}, _ANSWER_S) as answer:
            total = int(answer.headers.get("Content-Length", "0"))
            handle, aside_name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
            aside = Path(aside_name)
            try:
                with os.fdopen(handle, "wb") as file:
                    done = 0
                    while chunk := answer.read(_CHUNK_BYTES):
                        file.write(chunk)
                        done += len(chunk)
                        on_bytes(done, total)
                    if done != total:
                        raise CommandError("broken_off", f"The answer broke off after {done} of {total} bytes.")
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(out)
            finally:
                aside.unlink(missing_ok=True)
            return done

    def upload(self, folder: str, name: str, file: Path, on_bytes: Callable[[int, int], None]) -> dict[str, Any]:
        """Publish a file as a model. Raises CommandError, OSError."""
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="folder"\r\n\r\n{folder}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="data"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        with file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size

            def pieces() -> Iterator[bytes]:
                yield head
                done = 0
                while chunk := source.read(_CHUNK_BYTES):
                    yield chunk
                    done += len(chunk)
                    on_bytes(done, size)
                yield tail

            headers = {
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                "Content-Length": str(len(head) + size + len(tail)),
            }
            with self._answer("POST", f"/upload/{quote(name, safe='')}", pieces(), headers, _ANSWER_S) as answer:
                return _object(answer.read())

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], timeout_s: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        try:
            try:
                connection.connect()
            except OSError as err:
                said = f"The loader does not answer at {self.where}: {err.strerror or err}. Is it running?"
                raise CommandError("service_unreachable", said) from err
            connection.sock.settimeout(timeout_s)
            # A service that refuses a body may answer before it has read all of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self._base + path, body, {**self._headers, **headers})
            answer = connection.getresponse()
            if answer.status >= 400:
                raise _refusal(answer.status, answer.read(_ERROR_MAX_BYTES))
            yield answer
        except (http.client.HTTPException, ConnectionError, TimeoutError) as err:
            raise CommandError("broken_off", f"The connection to the loader at {self.where} broke off.") from err
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._uds is not None:
            return _UnixConnection(self._uds, self._host, self._port)
        if self._tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=_CONNECT_S, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_S)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, host: str, port: int | None) -> None:
        super().__init__(host, port, timeout=_CONNECT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CONNECT_S)
        self.sock.connect(str(self._path))


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as err:
        raise CommandError("not_a_loader", "What answers there is no loader.") from err
    if not isinstance(found, dict):
        raise CommandError("not_a_loader", "What answers there is no loader.")
    return found


def _refusal(status: int, content: bytes) -> CommandError:
    found = _object(content)
    detail = found.get("detail")
    if isinstance(detail, list):
        detail = "; ".join(str(one.get("msg", one)) for one in detail if isinstance(one, dict))
    return CommandError(str(found.get("code", "not_a_loader")), str(detail), status=status)
