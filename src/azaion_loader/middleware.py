"""What every request passes before a route sees it.

In this order, because each check keeps a caller away from what the next one would tell or cost:

1. `Host` is one that this service answers to (a page that rebinds its own name to this machine is not), else 403;
2. a call that changes state does not come from a page of another origin, else 403;
3. the bearer token of this service, where one is configured and for all but `/health` and the files of the operator's
   page, else 401;
4. the body is whole, in time and bounded, else 413 or 422; paths that stream bound their own bodies.

Plain ASGI: a middleware on top of the framework's base class would buffer streamed answers and hide disconnects.
"""

import asyncio
import hmac
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from azaion_loader.errors import CrossSite, HostNotAllowed, InvalidRequest, LoaderError, TooLarge, Unauthorized
from azaion_loader.http_errors import error_response
from azaion_loader.settings import host_name

BODY_MAX_BYTES = 64 << 10
BODY_TIMEOUT_S = 15.0
# A body that is a little too large is read to its end: most clients see the answer only after they have sent all.
_DISCARD_MAX_BYTES = 1 << 20

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# A browser has no token yet when it opens the page, which then asks for one; the files hold nothing of this device.
_OPEN_PATHS = frozenset({"/health", "/", "/static/app.css", "/static/app.js", "/static/icon.svg"})
_STREAMED_PATHS = ("/upload/",)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Guard:
    """Refuses what the module's docstring lists; no `allowed_hosts` means any, no `api_token` none."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: Iterable[str] = (),
        api_token: bytes | None = None,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._app = app
        self._allowed_hosts = frozenset(allowed_hosts)
        self._api_token = api_token
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_host(scope)
            self._check_origin(scope)
            self._check_token(scope)
            if not scope["path"].startswith(_STREAMED_PATHS):
                receive = await self._read_body(scope, receive)
        except LoaderError as refusal:
            await error_response(refusal, {"Connection": "close"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check_host(self, scope: Scope) -> None:
        hosts = _headers(scope, b"host")
        if self._allowed_hosts and (len(hosts) != 1 or host_name(hosts[0]) not in self._allowed_hosts):
            raise HostNotAllowed("This service does not answer to that host name; ALLOWED_HOSTS lists those it does.")

    def _check_origin(self, scope: Scope) -> None:
        if scope["method"] in _SAFE_METHODS:
            return
        sites = _headers(scope, b"sec-fetch-site")
        origins = _headers(scope, b"origin")
        if any(site.strip().lower() not in {"same-origin", "none"} for site in sites) or any(
            not _is_own_origin(origin, _headers(scope, b"host")) for origin in origins
        ):
            raise CrossSite("A page of another site may not change anything here.")

    def _check_token(self, scope: Scope) -> None:
        if self._api_token is None or scope["path"] in _OPEN_PATHS:
            return
        given = _headers(scope, b"authorization")
        scheme, _, token = given[0].strip().partition(" ") if len(given) == 1 else ("", "", "")
        matches = hmac.compare_digest(token.strip().encode("latin-1"), self._api_token)
        if scheme.lower() != "bearer" or not matches:
            raise Unauthorized("This service takes calls with its bearer token only.")

    async def _read_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read a small body whole, and return a `receive` that gives it again."""
        declared = _headers(scope, b"content-length")
        if any(not _is_length(value) for value in declared):
            raise InvalidRequest("The header Content-Length is not a number.")
        too_large = TooLarge(f"The body of this request may hold {BODY_MAX_BYTES} bytes.")
        if any(len(value) > 9 or int(value) > _DISCARD_MAX_BYTES for value in declared):
            raise too_large
        body, size_bytes, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while more and size_bytes <= _DISCARD_MAX_BYTES:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise InvalidRequest("The client went away before its request was complete.")
                    size_bytes += len(message.get("body", b""))
                    if size_bytes <= BODY_MAX_BYTES:
                        body += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError as err:
            raise InvalidRequest(f"The request's body did not arrive within {self._body_timeout_s:g} s.") from err
        if size_bytes > BODY_MAX_BYTES:
            raise too_large
        return _replay(bytes(body), receive)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _headers(scope: Scope, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _is_length(value: str) -> bool:
    return value.isascii() and value.isdigit()


def _is_own_origin(origin: str, hosts: Sequence[str]) -> bool:
    """Whether `origin` names the host and port that the request was sent to.

    The scheme is left out of it: behind a proxy that speaks TLS the browser's differs from ours.
    """
    if len(hosts) != 1:
        return False
    try:
        page = urlsplit(origin.strip())
        here = urlsplit(f"{page.scheme}://{hosts[0].strip()}")
        default = _DEFAULT_PORTS.get(page.scheme)
        page_port, here_port = page.port or default, here.port or default
    except ValueError:  # not an address at all, so nobody's origin
        return False
    return default is not None and bool(page.hostname) and (page.hostname, page_port) == (here.hostname, here_port)
