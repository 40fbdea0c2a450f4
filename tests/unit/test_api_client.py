"""The client against the development Resource API: each call, each answer it may get."""

import contextlib
import datetime
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azaion_devkit import reference_crypto
from azaion_devkit.resource_api import DevResourceApi
from azaion_loader import api_answers
from azaion_loader.api_client import KEY_FRAGMENT_MAX_BYTES, ApiClient
from azaion_loader.credentials import Credentials
from azaion_loader.errors import (
    AccountLocked,
    HardwareMismatch,
    InvalidCredentials,
    LoaderError,
    RateLimited,
    ResourceNotFound,
    TokenForbidden,
    TokenRefused,
    UpstreamError,
)
from azaion_loader.tokens import decode_token

USER = Credentials("user@example.com", "password1")
HARDWARE = "CPU: TestCpu. GPU: TestGpu. Memory: 8000000. DriveSerial: S123"

Act = Callable[[ApiClient, str], object]
CALLS: dict[str, Act] = {
    "/binary-split": lambda client, token: client.key_fragment(token),
    "/resources/get": lambda client, token: client.get_resource(token, "models", "a", USER, HARDWARE),
    "/resources/list": lambda client, token: client.list_resources(token, "models", "a"),
    "/resources/models": lambda client, token: client.put_resource(token, "models", "a", b"data"),
    "/resources/check": lambda client, token: client.check_hardware(token, HARDWARE),
}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevResourceApi]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with DevResourceApi(tmp_path / "api", key_fragment=b"key-fragment-0001") as server:
        server.add_user("user@example.com", "password1")
        yield server


@pytest.fixture
def client(api: DevResourceApi) -> Iterator[ApiClient]:
    made = ApiClient(api.url + "/", connect_timeout_s=2, login_timeout_s=5, request_timeout_s=5, stall_timeout_s=5)
    yield made
    made.close()


@pytest.fixture
def token(api: DevResourceApi, client: ApiClient) -> str:
    made = client.login(USER)
    api.calls.clear()
    return made


def statuses(api: DevResourceApi) -> list[tuple[str, int]]:
    return [(call.path, call.status) for call in api.calls]


def test_login(client: ApiClient, api: DevResourceApi) -> None:
    assert decode_token(client.login(USER))["unique_name"] == "user@example.com"
    api.service.token_field = "Token"
    api.service.extra_fields = {"refreshToken": "x", "mfaEnabled": True, "expiresIn": 900}
    assert decode_token(client.login(USER))["role"] == "Operator"


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("nobody@example.com", "password1"),
        ("user@example.com", "password2"),
        ("user@example.com", "short"),
        ("no e-mail", "password1"),
        ("off@example.com", "password1"),
    ],
)
def test_credentials_that_the_api_refuses(client: ApiClient, api: DevResourceApi, email: str, password: str) -> None:
    api.add_user("off@example.com", "password1", disabled=True)
    with pytest.raises(InvalidCredentials):
        client.login(Credentials(email, password))
    assert statuses(api) == [("/login", 409)]


@pytest.mark.parametrize("code", [10, 30, 32, 35, 37, 38])
@pytest.mark.parametrize("spelled", ['{"ErrorCode": %d, "Message": "x"}', '{"errorcode": "%d"}', '{"ERRORCODE":%d}'])
def test_codes_of_wrong_credentials(client: ApiClient, api: DevResourceApi, code: int, spelled: str) -> None:
    api.fail_next("/login", 409, spelled % code)
    with pytest.raises(InvalidCredentials):
        client.login(USER)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, "", InvalidCredentials),
        (401, '{"mfaRequired": true}', InvalidCredentials),
        (403, "", InvalidCredentials),
        (200, '{"mfaRequired": true}', InvalidCredentials),
        (200, '{"token": null, "mfa_token": "x"}', InvalidCredentials),
        (200, '{"token": "", "status": "TWO_FACTOR_REQUIRED"}', InvalidCredentials),
        (200, '{"token": "a.b.c", "requiresTwoFactor": true}', InvalidCredentials),
        (409, '{"ErrorCode": 40}', HardwareMismatch),
        (409, '{"ErrorCode": 45}', HardwareMismatch),
        (409, '{"ErrorCode": 50}', UpstreamError),
        (409, '{"ErrorCode": 999}', UpstreamError),
        (409, '{"ErrorCode": true}', UpstreamError),
        (409, "<html>", UpstreamError),
        (409, "[]", UpstreamError),
        (400, "", UpstreamError),
        (404, "", UpstreamError),
        (422, "", UpstreamError),
        (500, "", UpstreamError),
        (502, "<html>", UpstreamError),
        (503, "", UpstreamError),
        (204, "", UpstreamError),
        (200, "", UpstreamError),
        (200, "<html>log in</html>", UpstreamError),
        (200, '{"token": "a.b', UpstreamError),
        (200, "{}", UpstreamError),
        (200, "[]", UpstreamError),
        (200, '"a.b.c"', UpstreamError),
        (200, '{"token": 5}', UpstreamError),
        (200, '{"token": ["a"]}', UpstreamError),
        (200, '{"token": "a b"}', UpstreamError),
        (200, '{"token": "a\\r\\nX-Header: 1"}', UpstreamError),
        (200, json.dumps({"token": "a" * 20_000}), UpstreamError),
        (200, "[" * 100_000, UpstreamError),
        (200, "\xff\xfe", UpstreamError),
    ],
)
def test_answers_to_a_log_in(
    client: ApiClient, api: DevResourceApi, status: int, body: str, kind: type[LoaderError]
) -> None:
    api.fail_next("/login", status, body)
    with pytest.raises(kind) as caught:
        client.login(USER)
    assert type(caught.value) is kind
    assert "password1" not in str(caught.value)
    assert api.count("/login") == 1


@pytest.mark.parametrize(("status", "kind"), [(423, AccountLocked), (429, RateLimited)])
@pytest.mark.parametrize("path", ["/login", *CALLS])
def test_waits_are_passed_on(  # noqa: PLR0917
    client: ApiClient, token: str, api: DevResourceApi, status: int, kind: type[LoaderError], path: str
) -> None:  # fmt: skip
    api.fail_next(path, status, headers={"Retry-After": "17"})
    with pytest.raises(kind) as caught:
        client.login(USER) if path == "/login" else CALLS[path](client, token)
    assert caught.value.retry_after_s == 17


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 5 ", 5),
        ("999999999999", 7 * 24 * 3600),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
        ("Wed, 21 Oct 9999 07:27:00 GMT", 7 * 24 * 3600),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
    ],
)
def test_retry_after(text: str, seconds: int | None) -> None:
    headers = {"Retry-After": text, "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert api_answers.retry_after_s(headers) == seconds


def test_retry_after_as_a_date_without_a_date_of_the_answer() -> None:
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    seconds = api_answers.retry_after_s({"Retry-After": until.strftime("%a, %d %b %Y %H:%M:%S GMT")})
    assert seconds is not None
    assert 95 <= seconds <= 101


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_retry_after_is_bounded_or_left_out(text: str, date: str) -> None:
    seconds = api_answers.retry_after_s({"Retry-After": text, "Date": date})
    assert seconds is None or 0 <= seconds <= 7 * 24 * 3600


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["token", "Token", "errorCode", "mfa", "x"]), inner, max_size=4),
).map(lambda value: json.dumps(value).encode()), st.integers(200, 599))  # fmt: skip
def test_any_body_is_a_token_or_an_error_of_the_tree(body: bytes, status: int) -> None:
    with contextlib.suppress(LoaderError):
        assert api_answers.token_of(body)
    try:
        assert isinstance(api_answers.error_of(status, {}, body, at_login=True), LoaderError)
    except UpstreamError:
        assert status == 409


def test_key_fragment(client: ApiClient, token: str, api: DevResourceApi) -> None:
    assert client.key_fragment(token) == b"key-fragment-0001"
    assert api.calls[0].email == "user@example.com"
    api.fail_next("/binary", 200, b"x" * KEY_FRAGMENT_MAX_BYTES)
    assert len(client.key_fragment(token)) == KEY_FRAGMENT_MAX_BYTES


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind"),
    [
        (404, b"", {}, ResourceNotFound),
        (200, b"", {}, UpstreamError),
        (204, b"", {}, UpstreamError),
        (200, b"x" * (KEY_FRAGMENT_MAX_BYTES + 1), {}, UpstreamError),
        (200, b"x" * 3_000_000, {}, UpstreamError),
        (200, b"<html>", {"Content-Type": "text/html; charset=utf-8"}, UpstreamError),
    ],
    ids=["absent", "empty", "none", "long", "huge", "page"],
)
def test_key_fragments_that_are_none(  # noqa: PLR0917
    client: ApiClient, token: str, api: DevResourceApi, status: int, body: bytes, headers: dict[str, str],
    kind: type[LoaderError],
) -> None:  # fmt: skip
    api.fail_next("/binary", status, body, headers)
    with pytest.raises(kind):
        client.key_fragment(token)


@pytest.mark.parametrize("folder", ["models", ""])
def test_resource_round_trip(client: ApiClient, token: str, api: DevResourceApi, folder: str) -> None:
    data = bytes(range(256)) * 12 + b"\r\n--boundary\r\n"
    client.put_resource(token, folder, "part.small", data)
    assert (api.root / folder / "part.small").read_bytes() == data
    client.put_resource(token, folder, "part.small", data[::-1])
    encrypted = client.get_resource(token, folder, "part.small", USER, HARDWARE)
    key = reference_crypto.download_key("user@example.com", "password1", HARDWARE)
    assert reference_crypto.decrypt(encrypted, key) == data[::-1]
    assert client.list_resources(token, folder, "part.small") == ["part.small"]
    assert client.list_resources(token, folder, "nothing") == []


def test_an_empty_resource(client: ApiClient, token: str) -> None:
    client.put_resource(token, "models", "empty.small", b"")
    encrypted = client.get_resource(token, "models", "empty.small", USER, HARDWARE)
    assert (
        reference_crypto.decrypt(encrypted, reference_crypto.download_key(USER.email, USER.password, HARDWARE)) == b""
    )


def test_names_are_quoted(client: ApiClient, token: str, api: DevResourceApi) -> None:
    with pytest.raises(ResourceNotFound):
        client.get_resource(token, "a/../b c?", "x", USER, HARDWARE)
    assert api.calls[0].path == "/resources/get/a%2F..%2Fb%20c%3F"
    client.list_resources(token, "models", "a&b=c")
    assert api.calls[1].path == "/resources/list/models?search=a%26b%3Dc"


@pytest.mark.parametrize(("missing", "trips"), [("404", 1), ("409", 1), ("500", 2)])
def test_a_missing_resource(client: ApiClient, token: str, api: DevResourceApi, missing: str, trips: int) -> None:
    api.service.missing = missing  # type: ignore[assignment]
    (api.root / "models").mkdir()
    (api.root / "models" / "absent.bin.old").write_bytes(b"its name holds the other")
    with pytest.raises(ResourceNotFound, match=r"absent\.bin"):
        client.get_resource(token, "models", "absent.bin", USER, HARDWARE)
    assert len(api.calls) == trips


def test_500_for_a_resource_that_is_listed(client: ApiClient, token: str, api: DevResourceApi) -> None:
    client.put_resource(token, "models", "a", b"data")
    api.fail_next("/resources/get", 500)
    with pytest.raises(UpstreamError, match="500"):
        client.get_resource(token, "models", "a", USER, HARDWARE)
    assert [path for path, _ in statuses(api)][1:] == ["/resources/get/models", "/resources/list/models?search=a"]


@pytest.mark.parametrize(
    ("listed", "kind"),
    [
        ((404, b""), ResourceNotFound),
        ((500, b""), UpstreamError),
        ((200, b"{}"), UpstreamError),
        ((200, b"[1]"), UpstreamError),
        ((200, b"<html>"), UpstreamError),
        ((401, b""), TokenRefused),
        ((403, b""), TokenForbidden),
    ],
)
def test_500_and_a_list_that_does_not_help(
    client: ApiClient, token: str, api: DevResourceApi, listed: tuple[int, bytes], kind: type[LoaderError]
) -> None:
    api.fail_next("/resources/get", 500)
    api.fail_next("/resources/list", *listed)
    with pytest.raises(kind):
        client.get_resource(token, "models", "a", USER, HARDWARE)
    assert len(api.calls) == 2


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, b"", TokenRefused),
        (403, b"", TokenForbidden),
        (409, b'{"errorCode": 40}', HardwareMismatch),
        (409, b'{"errorCode": 45}', HardwareMismatch),
        (409, b'{"errorCode": 30}', InvalidCredentials),
        (409, b'{"errorCode": 60}', UpstreamError),
        (409, b"nonsense", UpstreamError),
        (400, b"", UpstreamError),
        (413, b"", UpstreamError),
        (418, b"", UpstreamError),
        (502, b"<html>", UpstreamError),
        (503, b"", UpstreamError),
    ],
)
def test_refusals_of_every_call(  # noqa: PLR0917
    client: ApiClient, token: str, api: DevResourceApi, path: str, status: int, body: bytes, kind: type[LoaderError]
) -> None:  # fmt: skip
    api.fail_next(path, status, body)
    with pytest.raises(kind) as caught:
        CALLS[path](client, token)
    assert type(caught.value) is kind
    assert len(api.calls) == 1


def test_hardware_is_bound_by_the_first_call(client: ApiClient, token: str, api: DevResourceApi) -> None:
    client.check_hardware(token, HARDWARE)
    client.check_hardware(token, HARDWARE)
    for hardware in ("another", ""):
        with pytest.raises(HardwareMismatch):
            client.check_hardware(token, hardware)
        with pytest.raises(HardwareMismatch):
            client.get_resource(token, "models", "a", USER, hardware)
    api.users["user@example.com"].hardware = None
    with pytest.raises(ResourceNotFound):
        client.get_resource(token, "models", "a", USER, "another")
    client.check_hardware(token, "another")


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"false", HardwareMismatch), (b"{}", UpstreamError), (b"1", UpstreamError), (b"<html>", UpstreamError)],
)
def test_hardware_checks_that_are_not_true(
    client: ApiClient, token: str, api: DevResourceApi, body: bytes, kind: type[LoaderError]
) -> None:
    api.fail_next("/resources/check", 200, body)
    with pytest.raises(kind):
        client.check_hardware(token, HARDWARE)


@pytest.mark.parametrize("path", ["/resources/check", "/resources/models"])
def test_404_where_nothing_is_looked_for(client: ApiClient, token: str, api: DevResourceApi, path: str) -> None:
    api.fail_next(path, 404)
    with pytest.raises(UpstreamError):
        CALLS[path](client, token)


def test_a_resource_longer_than_allowed(client: ApiClient, token: str) -> None:
    client.put_resource(token, "models", "a", b"x" * 2_000_000)
    assert len(client.get_resource(token, "models", "a", USER, HARDWARE)) == 2_000_032
    with pytest.raises(UpstreamError, match="more than 2000031 bytes"):
        client.get_resource(token, "models", "a", USER, HARDWARE, max_bytes=2_000_031)


def test_packed_answers_are_unpacked_and_bounded(client: ApiClient, token: str, api: DevResourceApi) -> None:
    api.fail_next("/binary", 200, gzip.compress(b"fragment"), {"Content-Encoding": "gzip"})
    assert client.key_fragment(token) == b"fragment"
    api.fail_next("/binary", 200, gzip.compress(bytes(20_000_000)), {"Content-Encoding": "gzip"})
    with pytest.raises(UpstreamError, match="more than"):
        client.key_fragment(token)
    api.fail_next("/binary", 200, b"not gzip at all", {"Content-Encoding": "gzip"})
    with pytest.raises(UpstreamError):
        client.key_fragment(token)


def test_none_does_not_reach_compiled_code(client: ApiClient, token: str) -> None:
    with pytest.raises((TypeError, AttributeError)):
        client.login(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        client.key_fragment(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        client.put_resource(token, None, "a", b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        client.put_resource(token, "models", "a", None)  # type: ignore[arg-type]
