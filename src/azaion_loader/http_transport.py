"""HTTP with an end: every call has a deadline over all of it, and a stall rule for each wait inside.

requests' time-outs hold for one `recv`, so a server that sends one byte a second, in its headers or its body, is
never timed out. Here the sockets themselves know the call's deadline: before each blocking operation (connect, TLS
handshake, send, receive) a socket sets its time-out to what is left, at most the stall time-out. So there is no
watchdog thread, and nothing to race with.

What else this transport decides:

- Redirects are never followed. The Resource API has none; one is mostly a base address with the wrong scheme.
- Proxies and private CAs come from the standard variables; `.netrc` never adds credentials; cookies are not kept.
- Nothing is repeated, except one repeatable call on a kept connection that the server closed in that moment.
- Names are resolved in a thread that a call stops waiting for: the resolver itself has no time-out to set.

Only classes of `errors.py` leave this module.
"""

import contextlib
import http.client
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from azaion_loader import metrics
from azaion_loader.errors import LoaderError, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from azaion_loader.http_sockets import (
    CallDeadline,
    DeadlineHTTPConnectionPool,
    DeadlineHTTPSConnectionPool,
    Resolver,
    call_deadline,
)

_READ_BYTES = 64 * 1024
# Placeholders until used: above the number of callers that a device has at once.
_POOL_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer read to its end; header names are compared without regard to case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """The media type without parameters, in lower case; empty where none was sent."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()


class HttpTransport:
    """Calls to one upstream, named `upstream` in sentences. Thread-safe; connections are kept for a short while."""

    def __init__(self, upstream: str, *, connect_timeout_s: float, stall_timeout_s: float) -> None:
        self._upstream = upstream
        self._connect_timeout_s = connect_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._resolver = Resolver()
        self._session = requests.Session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        # With an `auth` of its own requests doesn't look into .netrc, which would replace the bearer token.
        self._session.auth = _no_added_credentials
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _DeadlineAdapter(pool_connections=4, pool_maxsize=_POOL_CONNECTIONS))

    def request(
        self,
        method: str,
        url: str,
        *,
        timeout_s: float,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        repeatable: bool,
    ) -> HttpAnswer:
        """Make one call and return its answer, whatever its status below 300 or above 399.

        The whole call ends within `timeout_s`. `repeatable` allows the one repeat described above.
        Raises UpstreamUnavailable, UpstreamTimeout, UpstreamError (redirect, broken answer, more than `max_bytes`).
        """
        request = requests.Request(
            method, url, headers={"Accept-Encoding": "identity", **(headers or {})}, json=json, files=files
        )
        call = CallDeadline(timeout_s, self._connect_timeout_s, self._stall_timeout_s, self._resolver)
        with self._counted(), self._translated(url), call_deadline(call):
            try:
                return self._note(self._send(request, max_bytes))
            except requests.ConnectionError as err:
                if not (repeatable and call.on_kept_connection and _find(err, _BROKEN_OFF)):
                    raise
            return self._note(self._send(request, max_bytes))

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        except LoaderError as err:
            metrics.count("upstream_answers", upstream=self._upstream, answer=err.code)
            raise
        finally:
            metrics.count("upstream_seconds", time.monotonic() - started, upstream=self._upstream)

    def _note(self, answer: HttpAnswer) -> HttpAnswer:
        metrics.count("upstream_answers", upstream=self._upstream, answer=str(answer.status))
        return answer

    def _send(self, request: requests.Request, max_bytes: int) -> HttpAnswer:
        prepared = self._session.prepare_request(request)
        environment = self._session.merge_environment_settings(prepared.url, {}, True, None, None)
        timeout = (self._connect_timeout_s, self._stall_timeout_s)
        response = self._session.send(prepared, timeout=timeout, allow_redirects=False, **environment)
        with contextlib.closing(response):
            if 300 <= response.status_code < 400:
                raise UpstreamError(
                    f"The {self._upstream} answered with a redirect ({response.status_code}), which is never followed; "
                    "check its configured address."
                )
            if not _is_well_framed(response):
                raise UpstreamError(f"The {self._upstream} answered with headers that are cut or malformed.")
            return HttpAnswer(response.status_code, response.headers, self._read(response.raw, max_bytes))

    def _read(self, raw: Any, max_bytes: int) -> bytes:
        """Return the whole body, unpacked where the other side packed it all the same."""
        body = bytearray()
        try:
            while chunk := raw.read1(_READ_BYTES, decode_content=True):
                body += chunk
                if len(body) > max_bytes:
                    raise UpstreamError(f"The {self._upstream} answered with more than {max_bytes} bytes.")
        except (urllib3.exceptions.ProtocolError, urllib3.exceptions.DecodeError) as err:
            raise UpstreamError(f"The {self._upstream} broke off in the middle of an answer, or garbled it.") from err
        return bytes(body)

    @contextlib.contextmanager
    def _translated(self, url: str) -> Iterator[None]:
        """Turn what requests, urllib3 and the sockets raise into the loader's errors."""
        try:
            yield
        except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as err:
            raise _translate(err, f"The {self._upstream} ({_host(url)})") from err
        except ValueError as err:
            # http.client reads some malformed answers with a bare int().
            raise UpstreamError(f"The {self._upstream} answered something that is not HTTP.") from err


def _is_well_framed(response: requests.Response) -> bool:
    """Tell whether the headers can be trusted to say where the body ends.

    http.client takes cut headers for whole ones and a malformed length for none; urllib3 logs the first.
    """
    length = response.headers.get("Content-Length", "0")
    original = getattr(response.raw, "_original_response", None)
    return length.isascii() and length.isdigit() and not (original is not None and original.msg.defects)


class _DeadlineAdapter(HTTPAdapter):
    """requests' adapter over deadline pools, with urllib3's own repeats off, directly and through a proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_deadline_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        _use_deadline_pools(manager)
        return manager

    def close(self) -> None:
        # urllib3 leaves the closing of a cleared pool to the garbage collector.
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - the container refuses to be iterated
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
        super().close()


def _use_deadline_pools(manager: urllib3.PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": DeadlineHTTPConnectionPool, "https": DeadlineHTTPSConnectionPool}


def _no_added_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Serve requests as an `auth` that changes nothing."""
    return request


_BROKEN_OFF = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ConnectionAbortedError)

# The first row that fits decides. Order matters: urllib3 counts some failures to connect as time-outs.
_ROWS: tuple[tuple[tuple[type[BaseException], ...], type[UpstreamError], str], ...] = (
    (
        (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, urllib3.exceptions.LocationValueError),
        UpstreamUnavailable,
        "can't be reached: its address, or the proxy's, can't be used",
    ),
    ((urllib3.exceptions.ProxyError,), UpstreamUnavailable, "can't be reached: the proxy can't be used"),
    ((urllib3.exceptions.NameResolutionError,), UpstreamUnavailable, "can't be reached: its name was not resolved"),
    ((ConnectionRefusedError,), UpstreamUnavailable, "can't be reached: the connection was refused"),
    ((urllib3.exceptions.NewConnectionError,), UpstreamUnavailable, "can't be reached: no way to it in the network"),
    (
        (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError),
        UpstreamTimeout,
        "did not answer in time",
    ),
    ((ssl.SSLError,), UpstreamUnavailable, "can't be reached: no TLS connection came about"),
    (_BROKEN_OFF, UpstreamUnavailable, "can't be reached: it ended the connection without an answer"),
    ((http.client.HTTPException, urllib3.exceptions.HTTPError), UpstreamError, "answered something that is not HTTP"),
)


def _translate(err: Exception, who: str) -> UpstreamError:
    """Return the loader's error for a foreign one; its sentence names the cause, and never a URL or a header."""
    certificate = _find(err, (ssl.SSLCertVerificationError,))
    if isinstance(certificate, ssl.SSLCertVerificationError):
        reason = str(getattr(certificate, "verify_message", "")).rstrip(".") or "it does not verify"
        return UpstreamUnavailable(f"{who} can't be reached safely: its certificate was refused ({reason}).")
    for kinds, kind, phrase in _ROWS:
        if _find(err, kinds):
            return kind(f"{who} {phrase}.")
    if "CA certificate bundle" in str(err):
        return UpstreamUnavailable(f"{who} can't be reached: the file that REQUESTS_CA_BUNDLE names can't be read.")
    return UpstreamUnavailable(f"{who} can't be reached.")


def _host(url: str) -> str:
    """Return what a sentence may show of an address: its host, without the user and password it may hold."""
    try:
        return urlsplit(url).hostname or "no host"
    except ValueError:
        return "no host"


def _find(err: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """Return the first error of one of these kinds among `err` and what it wraps, by cause, context or argument."""
    waiting: list[BaseException] = [err]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, kinds):
            return current
        wrapped = (getattr(current, "reason", None), current.__cause__, current.__context__, *current.args)
        waiting.extend(item for item in wrapped if isinstance(item, BaseException))
    return None
