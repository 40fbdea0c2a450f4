"""A development Resource API on a real socket: stateful, and scriptable by tests.

It serves a folder: files in it are the root's resources (`cdn.yaml`), files in its sub-folders theirs,
`.users.toml` names the accounts and `.key-fragment` holds the key fragment. Keys are those of the development
profile, derived by `reference_crypto`, so the loader is checked by a second implementation.

``python -m azaion_devkit.resource_api --root DIR --port N --host H`` runs it until it is stopped.
"""

import argparse
import signal
import ssl
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from azaion_devkit.hold import Hold
from azaion_devkit.resource_api_handler import Missing, Resources, Service
from azaion_devkit.resource_api_server import DevServer
from azaion_devkit.resource_api_state import (
    KEY_FRAGMENT_FILE,
    Call,
    DevUser,
    Fault,
    Script,
    Tokens,
    Users,
    read_users,
)

__all__ = ["Call", "DevResourceApi", "DevUser", "Fault", "main"]


class DevResourceApi:
    """The server with its switches, all of which may be turned while it runs.

    `missing` is how an absent resource is reported, `token_field` how the log-in spells its property,
    `extra_fields` what it adds; `signing_key` (PEM) turns tokens into ES256 or RS256; `ssl_context` makes it HTTPS.
    Use as a context manager, or start() and stop().
    """

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        users: Iterable[DevUser] = (),
        key_fragment: bytes | None = None,
        missing: Missing = "404",
        token_field: str = "token",  # noqa: S107 - the name of a JSON property
        extra_fields: Mapping[str, object] | None = None,
        signing_key: bytes | None = None,
        token_lifetime_s: float = 4 * 3600.0,
        ssl_context: ssl.SSLContext | None = None,
        url_host: str | None = None,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        if key_fragment is not None:
            (root / KEY_FRAGMENT_FILE).write_bytes(key_fragment)
        self.root = root
        self.users = Users([*read_users(root), *users])
        self.tokens = Tokens(signing_key, token_lifetime_s)
        self.service = Service(self.users, self.tokens, Resources(root), missing, token_field, dict(extra_fields or {}))
        self.script = Script()
        self._address = (host, port)
        self._url_host = url_host or host
        self._ssl_context = ssl_context
        self._server: DevServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in the order in which they were answered."""
        return self.script.calls

    def count(self, path_prefix: str) -> int:
        """Return how many calls to paths with this beginning were seen."""
        return sum(call.path.startswith(path_prefix) for call in list(self.calls))

    @property
    def url(self) -> str:
        """The base address, for RESOURCE_API_URL."""
        scheme = "https" if self._ssl_context else "http"
        return f"{scheme}://{self._url_host}:{self.port}"

    @property
    def port(self) -> int:
        """The port in use; the one asked for while the server is stopped."""
        return int(self._server.server_address[1]) if self._server else self._address[1]

    def add_user(self, email: str, password: str, role: str = "Operator", *, disabled: bool = False) -> DevUser:
        """Add an account, or replace it."""
        return self.users.add(DevUser(email, password, role, disabled))

    def expire_tokens(self) -> None:
        """Answer 401 to every token issued so far."""
        self.tokens.expire_all()

    def fail_next(
        self,
        path_prefix: str = "/",
        status: int | None = None,
        body: bytes | str = b"",
        headers: Mapping[str, str] | None = None,
        *,
        times: int = 1,
        method: str | None = None,
        delay_s: float = 0.0,
        drip_s: float = 0.0,
        drip_bytes: int = 1,
        hang: bool = False,
        close: bool = False,
        reset: bool = False,
        cut_bytes: int | None = None,
        raw: bytes | None = None,
    ) -> None:
        """Let something happen to the next `times` calls of paths with this beginning.

        With `status` (and `body`, `headers`) the operation is not carried out and that is the answer; `raw` is sent
        in place of a whole answer, status line included. Without either the true answer is given, but late
        (`delay_s`), `drip_bytes` every `drip_s` seconds from its first header on, or only its first `cut_bytes`
        bytes. `hang` says nothing until the server stops, `close` ends the connection without an answer, `reset`
        does so with a TCP reset.
        """
        data = body.encode() if isinstance(body, str) else body
        fault = Fault(
            path_prefix, method, status, data, dict(headers or {}), delay_s, drip_s, drip_bytes, hang, close, reset,
            cut_bytes, raw,
        )  # fmt: skip
        self.script.add(fault, times)

    def hold_next(self, path_prefix: str) -> Hold:
        """Keep the next call of a path until the returned hold is released or dropped."""
        hold = Hold()
        self.script.add(Fault(path_prefix, hold=hold), 1)
        return hold

    def start(self) -> str:
        """Listen, and return the base address. A stopped server starts again on the port it had."""
        server = DevServer(self._address, self.service, self.script, self._ssl_context)
        self._server = server
        self._address = (self._address[0], int(server.server_address[1]))
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self.url

    def stop(self) -> None:
        """Stop listening, end every connection and wait for the threads."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()
        self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def main(arguments: list[str] | None = None) -> None:
    """Run the server until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="The development Resource API over a folder.")
    parser.add_argument("--root", type=Path, required=True, help="folder with .users.toml, .key-fragment, resources")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--missing", choices=("404", "409", "500"), default="404")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with DevResourceApi(options.root, host=options.host, port=options.port, missing=options.missing) as api:
        print(f"Resource API of {options.root} at {api.url}", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
