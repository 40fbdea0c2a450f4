"""The Resource API misbehaves on a real socket: every fault ends in its error, in time, and leaves nothing behind."""

import gc
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from azaion_devkit.certificates import CertificateAuthority
from azaion_devkit.resource_api import DevResourceApi
from azaion_loader.api_client import ApiClient
from azaion_loader.credentials import Credentials
from azaion_loader.errors import (
    LoaderError,
    NotAuthenticated,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from azaion_loader.sessions import Sessions
from azaion_loader.settings import Settings
from azaion_loader.tokens import TokenVerifier, decode_token

USER = Credentials("user@example.com", "password1")
HARDWARE = "CPU: TestCpu. GPU: TestGpu. Memory: 8000000. DriveSerial: S123"
STALL_S = 0.3
CALL_S = 0.7
SLACK_S = 1.0

Act = Callable[[ApiClient, str], object]
CALLS: dict[str, Act] = {
    "/login": lambda client, _token: client.login(USER),
    "/binary-split": lambda client, token: client.key_fragment(token),
    "/resources/get": lambda client, token: client.get_resource(token, "models", "a", USER, HARDWARE, 1 << 20),
    "/resources/models": lambda client, token: client.put_resource(token, "models", "a", b"data"),
}
WIRE_FAULTS: dict[str, tuple[dict[str, Any], type[LoaderError]]] = {
    "silent": ({"hang": True}, UpstreamTimeout),
    "late": ({"delay_s": 5.0}, UpstreamTimeout),
    "drips headers and body": ({"drip_s": 0.02}, UpstreamTimeout),
    "drips an error": ({"status": 401, "body": "x" * 100, "drip_s": 0.02}, UpstreamTimeout),
    "closes": ({"close": True}, UpstreamUnavailable),
    "resets": ({"reset": True}, UpstreamUnavailable),
    "half a status line": ({"cut_bytes": 7}, UpstreamError),
    "half of the headers": ({"cut_bytes": 30}, UpstreamError),
    "body cut short": ({"status": 200, "body": "x" * 500, "cut_bytes": 300}, UpstreamError),
    "chunks cut short": (
        {"raw": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n9\r\nab"},
        UpstreamError,
    ),
    "chunk of no length": (
        {"raw": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabcde\r\n"},
        UpstreamError,
    ),
    "not HTTP": ({"raw": b"220 mail.example ESMTP\r\n"}, UpstreamError),
    "binary": ({"raw": bytes(range(256)) * 8}, UpstreamError),
    "endless headers": ({"raw": b"HTTP/1.1 200 OK\r\n" + b"X-Header: y\r\n" * 5000}, UpstreamError),
    "endless header line": ({"raw": b"HTTP/1.1 200 OK\r\nX-Header: " + b"y" * 200_000}, UpstreamError),
    "redirect to http": ({"status": 301, "headers": {"Location": "http://127.0.0.1:1/"}}, UpstreamError),
    "redirect to a file": ({"status": 302, "headers": {"Location": "file:///etc/passwd"}}, UpstreamError),
    "500 page": ({"status": 502, "body": "<html>Bad gateway</html>"}, UpstreamError),
    "too long": ({"raw": b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 4_000_000}, UpstreamError),
    "two lengths": ({"raw": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"}, UpstreamError),
    "negative length": ({"raw": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"}, UpstreamError),
}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def open_descriptors() -> int:
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    threads, descriptors = threading.active_count(), open_descriptors()
    yield
    patience = time.monotonic() + 5
    while (threading.active_count() > threads or open_descriptors() > descriptors) and time.monotonic() < patience:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert open_descriptors() <= descriptors


def make_client(url: str, **changes: float) -> ApiClient:
    limits = {"connect_timeout_s": 1.0, "login_timeout_s": CALL_S, "request_timeout_s": CALL_S} | changes
    return ApiClient(url, stall_timeout_s=limits.pop("stall_timeout_s", STALL_S), **limits)


@pytest.fixture
def api(tmp_path: Path, nothing_left_behind: None) -> Iterator[DevResourceApi]:
    with DevResourceApi(tmp_path / "api", key_fragment=b"key-fragment-0001") as server:
        server.add_user("user@example.com", "password1")
        yield server


@pytest.fixture
def client(api: DevResourceApi) -> Iterator[ApiClient]:
    made = make_client(api.url)
    yield made
    made.close()


# An upload is done once its status line is there, so cut headers behind that are no fault to it.
CASES = [(p, f) for p in CALLS for f in WIRE_FAULTS if (p, f) != ("/resources/models", "half of the headers")]


@pytest.mark.parametrize(("path", "fault"), CASES)
def test_faults_on_the_wire(client: ApiClient, api: DevResourceApi, path: str, fault: str) -> None:
    how, kind = WIRE_FAULTS[fault]
    token = client.login(USER)
    client.put_resource(token, "models", "a", b"d" * 400)
    # Twice, since a call that may be repeated is repeated once when a kept connection ends.
    api.fail_next(path, **how, times=2)
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        CALLS[path](client, token)
    assert time.monotonic() - started < CALL_S + SLACK_S
    if fault != "chunks cut short":
        assert type(caught.value) is kind
    for secret in ("password1", token):
        assert secret not in str(caught.value)
    api.script.clear()
    assert client.login(USER)
    assert CALLS[path](client, token) is None or path != "/resources/models"


def test_the_default_limits_keep_the_promise() -> None:
    limits = Settings()
    assert limits.connect_timeout_s < 5
    assert limits.login_timeout_s < 15


@pytest.mark.parametrize(
    ("url", "word"),
    [("http://127.0.0.1:1", "refused"), ("https://127.0.0.1:1", "refused"), ("http://name.invalid", "resolved")],
)
def test_an_api_that_is_not_there(url: str, word: str) -> None:
    client = make_client(url)
    started = time.monotonic()
    with pytest.raises(UpstreamUnavailable, match=word):
        client.login(USER)
    client.close()
    assert time.monotonic() - started < 5


def test_a_drip_over_tls_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = CertificateAuthority(tmp_path / "ca")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_file))
    with DevResourceApi(tmp_path / "api", ssl_context=authority.server_context()) as api:
        client = make_client(api.url)
        for how in ({"drip_s": 0.02}, {"hang": True}):
            api.fail_next("/login", **how)
            started = time.monotonic()
            with pytest.raises(UpstreamTimeout):
                client.login(USER)
            assert time.monotonic() - started < CALL_S + SLACK_S
        client.close()


def test_a_server_silent_in_the_handshake_ends_in_time(api: DevResourceApi) -> None:
    # A plain server waits for a request line while the client waits for its part of the handshake.
    client = make_client(api.url.replace("http://", "https://"))
    started = time.monotonic()
    with pytest.raises((UpstreamTimeout, UpstreamUnavailable)):
        client.login(USER)
    assert time.monotonic() - started < CALL_S + SLACK_S
    client.close()


def test_a_private_ca_works_and_connections_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = CertificateAuthority(tmp_path / "ca")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_file))
    with DevResourceApi(
        tmp_path / "api", ssl_context=authority.server_context("localhost"), url_host="localhost", key_fragment=b"key"
    ) as api:
        api.add_user("user@example.com", "password1")
        client = make_client(api.url)
        token = client.login(USER)
        assert client.key_fragment(token) == b"key"
        # A kept TLS connection that the server ends: one repeat.
        api.fail_next("/binary-split", close=True)
        assert client.key_fragment(token) == b"key"
        client.close()


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ("wrong host", "certificate"),
        ("expired", "expired"),
        ("not yet valid", "not yet valid"),
        ("foreign", "certificate"),
        ("no bundle", "REQUESTS_CA_BUNDLE"),
        ("tls 1.1", "TLS"),
    ],
)
def test_certificates_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, word: str) -> None:
    authority = CertificateAuthority(tmp_path / "ca")
    trusted = CertificateAuthority(tmp_path / "other", "Another CA") if case == "foreign" else authority
    bundle = tmp_path / "absent.pem" if case == "no bundle" else trusted.ca_file
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    days = {"expired": (-10, -5), "not yet valid": (5, 10)}.get(case, (-1, 20))
    context = authority.server_context("api.example" if case == "wrong host" else "127.0.0.1", days=days)
    if case == "tls 1.1":
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols([])
        context.num_tickets = 0
        context.verify_mode = ssl.CERT_REQUIRED  # asks for a client certificate that we don't have
    with DevResourceApi(tmp_path / "api", ssl_context=context) as api:
        client = make_client(api.url)
        with pytest.raises(UpstreamUnavailable, match=word) as caught:
            client.login(USER)
        client.close()
        assert "password1" not in caught.value.message
        assert api.calls == []


def test_plain_http_is_refused_by_redirect_but_taken_when_configured(tmp_path: Path, api: DevResourceApi) -> None:
    client = make_client(api.url)
    assert client.login(USER)
    api.fail_next("/login", 307, headers={"Location": api.url + "/login"})
    with pytest.raises(UpstreamError, match="redirect"):
        client.login(USER)
    client.close()
    assert api.count("/login") == 2


def test_fifty_callers_and_a_token_that_expires_in_mid_use(api: DevResourceApi, tmp_path: Path) -> None:
    client = make_client(api.url, login_timeout_s=20, request_timeout_s=20, stall_timeout_s=20)
    sessions = Sessions(lambda: client, lambda: decode_token, tmp_path / "absent")
    sessions.log_in(USER)
    client.put_resource(client.login(USER), "models", "a", b"data")
    before = api.count("/login")
    together = threading.Barrier(51)

    def work(_index: int) -> int:
        together.wait()
        done = 0
        for _ in range(5):
            got = sessions.call(lambda token, credentials: client.get_resource(token, "models", "a", credentials, "H"))
            done += len(got) == 32
        return done

    with ThreadPoolExecutor(50) as pool:
        results = pool.map(work, range(50))
        together.wait()
        while api.count("/resources/get") < 60:
            time.sleep(0.001)
        api.expire_tokens()
        assert list(results) == [5] * 50
    client.close()
    assert api.count("/login") - before == 1


def test_tokens_with_a_signature(tmp_path: Path) -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with DevResourceApi(tmp_path / "api", key_fragment=b"key", signing_key=pem) as api:
        api.add_user("user@example.com", "password1")
        client = make_client(api.url)
        for signer, good in ((key, True), (other, False)):
            public = signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            verifier = TokenVerifier(public)
            sessions = Sessions(lambda: client, lambda check=verifier: check.verify, tmp_path / "absent")  # type: ignore[misc]
            if good:
                assert sessions.log_in(USER).email == "user@example.com"
                assert sessions.call(lambda token, _credentials: client.key_fragment(token)) == b"key"
            else:
                with pytest.raises(NotAuthenticated):
                    sessions.log_in(USER)
                assert not sessions.authenticated
        client.close()


def test_two_hundred_faulty_calls_leave_nothing(client: ApiClient, api: DevResourceApi) -> None:
    token = client.login(USER)
    descriptors, threads = open_descriptors(), threading.active_count()
    faults: list[dict[str, Any]] = [
        {"close": True}, {"reset": True}, {"cut_bytes": 20}, {"status": 500}, {"status": 301}, {"raw": b"x\r\n\r\n"},
        {"status": 200, "body": b""}, {"status": 200, "body": b"x" * 70_000},
    ]  # fmt: skip
    for index in range(200):
        api.fail_next("/binary", **faults[index % len(faults)], times=2)
        with pytest.raises(UpstreamError):
            client.key_fragment(token)
        api.script.clear()
    client.close()
    patience = time.monotonic() + 5
    while open_descriptors() > descriptors and time.monotonic() < patience:
        time.sleep(0.01)
    assert open_descriptors() <= descriptors
    assert threading.active_count() <= threads
