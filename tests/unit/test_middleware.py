"""The guard in front of every route: hosts, origins, the bearer token, bodies."""

import asyncio
import json
from collections.abc import Iterable

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from azaion_loader.middleware import BODY_MAX_BYTES, Guard


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)}")(scope, receive, send)


def pass_guard(
    guard: Guard,
    method: str = "GET",
    path: str = "/status",
    *,
    headers: Iterable[tuple[str, str]] = (("host", "device"),),
    body: Iterable[bytes] = (b"",),
    hang: bool = False,
) -> tuple[int, str, dict[str, str]]:
    """Return status, code (or the echo) and headers of the answer to one request."""
    sent: list[Message] = []
    parts = list(body)
    messages = [{"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)]

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        if hang:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b"", "scheme": "http"}
    asyncio.run(guard(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent[1:]).decode()
    answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    status = int(sent[0]["status"])
    return status, content if status == 200 else json.loads(content)["code"], answer


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("device", True),
        ("DEVICE", True),
        ("device.", True),
        ("device:8080", True),
        ("[::1]", True),
        ("[::1]:8080", True),
        ("[0:0:0:0:0:0:0:1]:8080", True),
        ("10.0.0.7:80", True),
        ("evil.example", False),
        ("device.evil.example", False),
        ("evildevice", False),
        ("device@evil.example", False),
        ("device:8080:1", False),
        ("device:port", False),
        ("device/", False),
        ("device evil", False),
        ("[::1", False),
        ("[::2]", False),
        ("d\xe9vice", False),
        ("", False),
    ],
)
def test_hosts(host: str, allowed: bool) -> None:
    guard = Guard(echo, allowed_hosts=("device", "::1", "10.0.0.7"))
    status, code, _ = pass_guard(guard, headers=[("Host", host)])
    assert (status, code) == ((200, "0") if allowed else (403, "host_not_allowed"))


def test_no_host_or_two_are_refused_where_hosts_are_listed() -> None:
    guard = Guard(echo, allowed_hosts=("device",))
    assert pass_guard(guard, headers=[])[:2] == (403, "host_not_allowed")
    assert pass_guard(guard, headers=[("Host", "device"), ("Host", "device")])[:2] == (403, "host_not_allowed")


def test_any_host_without_a_list() -> None:
    assert pass_guard(Guard(echo), headers=[("Host", "whatever.example")])[0] == 200
    assert pass_guard(Guard(echo), headers=[])[0] == 200


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://device:8080", "device:8080", True),
        ("http://device", "device", True),
        ("http://device:80", "device", True),
        ("http://device", "device:80", True),
        ("https://device", "device", True),
        ("https://device", "device:443", True),
        ("HTTP://DEVICE:8080", "device:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://device:8081", "device:8080", False),
        ("http://device", "device:8080", False),
        ("http://evil.example", "device", False),
        ("http://device.evil.example", "device", False),
        ("http://device@evil.example", "device", False),
        ("null", "device", False),
        ("", "device", False),
        ("file://", "device", False),
        ("chrome-extension://device", "device", False),
        ("http://device:x", "device", False),
        ("http://[", "device", False),
    ],
)
def test_origins(origin: str, host: str, own: bool) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "STRANGE"):
        status, code, _ = pass_guard(Guard(echo), method, headers=[("Host", host), ("Origin", origin)])
        assert (status, code) == ((200, "0") if own else (403, "cross_site"))


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_reading_is_open_to_other_sites(method: str) -> None:
    headers = [("Host", "device"), ("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")]
    assert pass_guard(Guard(echo), method, headers=headers)[0] == 200


@pytest.mark.parametrize(
    ("site", "own"), [("same-origin", True), ("none", True), ("cross-site", False), ("same-site", False), ("x", False)]
)
def test_sites_that_the_browser_names(site: str, own: bool) -> None:
    status, code, _ = pass_guard(Guard(echo), "POST", headers=[("Host", "device"), ("Sec-Fetch-Site", site)])
    assert (status, code) == ((200, "0") if own else (403, "cross_site"))


def test_one_own_origin_does_not_cover_a_foreign_one() -> None:
    headers = [("Host", "device"), ("Origin", "http://device"), ("Origin", "http://evil.example")]
    assert pass_guard(Guard(echo), "POST", headers=headers)[:2] == (403, "cross_site")


def test_an_origin_without_a_host_is_foreign() -> None:
    assert pass_guard(Guard(echo), "POST", headers=[("Origin", "http://device")])[:2] == (403, "cross_site")


@pytest.mark.parametrize(
    ("authorization", "known"),
    [
        ("Bearer geheim-1", True),
        ("bearer geheim-1", True),
        ("Bearer  geheim-1 ", True),
        ("Bearer geheim-2", False),
        ("Bearer geheim-", False),
        ("Bearer geheim-1x", False),
        ("Bearer", False),
        ("Bearer ", False),
        ("Basic geheim-1", False),
        ("geheim-1", False),
        ("Bearer geh\xe9im", False),
        ("", False),
    ],
)
def test_bearer_token(authorization: str, known: bool) -> None:
    guard = Guard(echo, api_token=b"geheim-1")
    status, code, headers = pass_guard(guard, headers=[("Host", "device"), ("Authorization", authorization)])
    assert (status, code) == ((200, "0") if known else (401, "unauthorized"))
    assert headers.get("www-authenticate") == (None if known else "Bearer")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/health", 200), ("/health/", 401), ("/healthy", 401), ("//health", 401), ("/docs", 401), ("/nope", 401)],
)
def test_health_alone_needs_no_token(path: str, status: int) -> None:
    assert pass_guard(Guard(echo, api_token=b"geheim-1"), path=path)[0] == status


def test_two_tokens_are_none() -> None:
    headers = [("Authorization", "Bearer geheim-1"), ("Authorization", "Bearer geheim-1")]
    assert pass_guard(Guard(echo, api_token=b"geheim-1"), headers=headers)[0] == 401


def test_the_order_of_the_checks() -> None:
    guard = Guard(echo, allowed_hosts=("device",), api_token=b"geheim-1")
    foreign = ("Origin", "http://evil.example")
    huge = ("Content-Length", "999999999999")
    good = ("Authorization", "Bearer geheim-1")
    assert pass_guard(guard, "POST", headers=[("Host", "evil"), foreign, huge])[1] == "host_not_allowed"
    assert pass_guard(guard, "POST", headers=[("Host", "device"), foreign, huge])[1] == "cross_site"
    assert pass_guard(guard, "POST", headers=[("Host", "device"), huge])[1] == "unauthorized"
    assert pass_guard(guard, "POST", headers=[("Host", "device"), huge, good])[1] == "too_large"


@pytest.mark.parametrize(
    ("sizes", "answer"),
    [
        ([0], (200, "0")),
        ([BODY_MAX_BYTES], (200, str(BODY_MAX_BYTES))),
        ([BODY_MAX_BYTES - 1, 1], (200, str(BODY_MAX_BYTES))),
        ([BODY_MAX_BYTES + 1], (413, "too_large")),
        ([BODY_MAX_BYTES, 1], (413, "too_large")),
        ([1000] * 5000, (413, "too_large")),
    ],
)
def test_bodies_are_bounded_whatever_they_declare(sizes: list[int], answer: tuple[int, str]) -> None:
    assert pass_guard(Guard(echo), "POST", body=[b"x" * size for size in sizes])[:2] == answer


def test_a_huge_declared_body_is_refused_unread() -> None:
    headers = [("Host", "device"), ("Content-Length", str(1 << 30))]
    assert pass_guard(Guard(echo), "POST", headers=headers, body=[], hang=True)[:2] == (413, "too_large")


@pytest.mark.parametrize("length", ["-1", "1e3", "\xb2", "", "0x10"])
def test_a_length_that_is_no_number(length: str) -> None:
    headers = [("Host", "device"), ("Content-Length", length)]
    assert pass_guard(Guard(echo), "POST", headers=headers)[:2] == (422, "invalid_request")


def test_a_body_that_does_not_come_to_its_end() -> None:
    guard = Guard(echo, body_timeout_s=0.05)
    endless = [b"x", b"x"]

    async def receive() -> Message:
        if endless:
            return {"type": "http.request", "body": endless.pop(), "more_body": True}
        return await asyncio.Event().wait()  # type: ignore[return-value]

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/login", "headers": [(b"host", b"device")]}
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == 422
    assert "0.05 s" in json.loads(sent[1]["body"])["detail"]


def test_a_client_that_goes_away_reaches_no_route() -> None:
    assert pass_guard(Guard(echo), "POST", body=[])[:2] == (422, "invalid_request")


def test_uploads_stream_past_the_bound() -> None:
    parts = [b"x" * BODY_MAX_BYTES] * 3
    assert pass_guard(Guard(echo), "POST", "/upload/model.bin", body=parts)[:2] == (200, str(3 * BODY_MAX_BYTES))


def test_the_lifespan_passes() -> None:
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    asyncio.run(Guard(app, allowed_hosts=("device",))({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
