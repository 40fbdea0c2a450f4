"""Sessions over the development Resource API: one log-in for all, failures, waits."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from azaion_devkit.resource_api import DevResourceApi
from azaion_loader.api_client import ApiClient
from azaion_loader.credentials import Credentials
from azaion_loader.errors import (
    AccountLocked,
    Forbidden,
    InvalidCredentials,
    LoaderError,
    NotAuthenticated,
    RateLimited,
    ResourceNotFound,
    TokenForbidden,
    TokenRefused,
    UpstreamError,
    UpstreamUnavailable,
)
from azaion_loader.sessions import REFUSED_PAUSE_S, Sessions
from azaion_loader.tokens import decode_token

USER = Credentials("user@example.com", "password1")
OTHER = Credentials("other@example.com", "password2")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevResourceApi]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with DevResourceApi(tmp_path / "api", key_fragment=b"fragment") as server:
        server.add_user("user@example.com", "password1")
        server.add_user("other@example.com", "password2", "Admin")
        yield server


@pytest.fixture
def client(api: DevResourceApi) -> Iterator[ApiClient]:
    made = ApiClient(api.url, connect_timeout_s=2, login_timeout_s=5, request_timeout_s=5, stall_timeout_s=5)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path / "device.conf"


@pytest.fixture
def sessions(client: ApiClient, clock: Clock, conf: Path) -> Sessions:
    return Sessions(lambda: client, lambda: decode_token, conf, clock=clock)


def write_conf(conf: Path, email: str = "user@example.com", password: str = "password1") -> None:  # noqa: S107
    conf.write_text(f"AZAION_DEVICE_EMAIL={email}\nAZAION_DEVICE_PASSWORD={password}\n")
    conf.chmod(0o600)


def fragment(client: ApiClient) -> Callable[[str, Credentials], bytes]:
    return lambda token, _credentials: client.key_fragment(token)


def logins(api: DevResourceApi) -> int:
    return api.count("/login")


def test_log_in(sessions: Sessions, api: DevResourceApi) -> None:
    assert not sessions.authenticated
    assert not sessions.is_of(OTHER)
    assert sessions.user is None
    user = sessions.log_in(OTHER)
    assert sessions.authenticated
    assert sessions.user == user
    assert user.email == "other@example.com"
    assert sessions.is_of(Credentials("other@example.com", "password2"))
    assert not sessions.is_of(USER)
    sessions.log_in(OTHER)
    assert logins(api) == 2


def test_a_failed_log_in_leaves_the_earlier_session(sessions: Sessions, api: DevResourceApi, client: ApiClient) -> None:
    sessions.log_in(USER)
    user = sessions.user
    with pytest.raises(InvalidCredentials):
        sessions.log_in(Credentials("other@example.com", "password1"))
    api.fail_next("/login", 200, '{"token": "a.b.c"}')
    with pytest.raises(UpstreamError):
        sessions.log_in(OTHER)
    api.tokens.extra_claims["nameid"] = None
    with pytest.raises(LoaderError):
        sessions.log_in(OTHER)
    assert sessions.user == user
    assert sessions.call(fragment(client)) == b"fragment"
    assert api.calls[-1].email == "user@example.com"


def test_the_action_gets_the_email_as_the_token_names_it(sessions: Sessions) -> None:
    sessions.log_in(Credentials("USER@Example.com", "password1"))
    seen = sessions.call(lambda _token, credentials: (credentials.email, credentials.password))
    assert seen == ("user@example.com", "password1")


def test_without_session_and_device_credentials(sessions: Sessions, api: DevResourceApi) -> None:
    with pytest.raises(NotAuthenticated, match="Nobody has logged in"):
        sessions.call(lambda token, _credentials: token)
    assert api.calls == []


def test_device_credentials_when_nobody_has_logged_in(
    sessions: Sessions, api: DevResourceApi, client: ApiClient, conf: Path
) -> None:
    write_conf(conf)
    assert sessions.call(fragment(client)) == b"fragment"
    assert sessions.call(fragment(client)) == b"fragment"
    assert logins(api) == 1
    sessions.log_in(OTHER)
    sessions.call(fragment(client))
    assert api.calls[-1].email == "other@example.com"


def test_a_refused_token_costs_one_log_in_and_one_repeat(
    sessions: Sessions, api: DevResourceApi, client: ApiClient
) -> None:
    sessions.log_in(USER)
    api.expire_tokens()
    assert sessions.call(fragment(client)) == b"fragment"
    assert [(call.path, call.status) for call in api.calls] == [
        ("/login", 200),
        ("/binary-split/key-fragment", 401),
        ("/login", 200),
        ("/binary-split/key-fragment", 200),
    ]


@pytest.mark.parametrize(
    ("status", "kind", "private"), [(401, NotAuthenticated, TokenRefused), (403, Forbidden, TokenForbidden)]
)
def test_a_token_refused_even_then(  # noqa: PLR0917
    sessions: Sessions,
    api: DevResourceApi,
    client: ApiClient,
    status: int,
    kind: type[LoaderError],
    private: type[LoaderError],
) -> None:
    sessions.log_in(USER)
    api.fail_next("/binary-split", status, times=2)
    with pytest.raises(kind) as caught:
        sessions.call(fragment(client))
    assert not isinstance(caught.value, private)
    assert logins(api) == 2
    assert api.count("/binary-split") == 2


def test_other_errors_are_the_callers(sessions: Sessions, api: DevResourceApi, client: ApiClient) -> None:
    sessions.log_in(USER)
    with pytest.raises(ResourceNotFound):
        sessions.call(lambda token, credentials: client.get_resource(token, "models", "x", credentials, "HW"))
    assert logins(api) == 1


def test_fifty_callers_share_one_log_in(sessions: Sessions, api: DevResourceApi, client: ApiClient) -> None:
    sessions.log_in(USER)
    api.expire_tokens()
    api.fail_next("/login", delay_s=0.1)
    together = threading.Barrier(50)

    def one(_index: int) -> bytes:
        together.wait()
        return sessions.call(fragment(client))

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(one, range(50))) == {b"fragment"}
    assert logins(api) == 2


def test_fifty_callers_share_one_first_log_in_of_the_device(
    sessions: Sessions, api: DevResourceApi, client: ApiClient, conf: Path
) -> None:
    write_conf(conf)
    api.fail_next("/login", delay_s=0.1)
    together = threading.Barrier(50)

    def one(_index: int) -> bytes:
        together.wait()
        return sessions.call(fragment(client))

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(one, range(50))) == {b"fragment"}
    assert logins(api) == 1


def test_fifty_callers_share_one_failure(sessions: Sessions, api: DevResourceApi, client: ApiClient) -> None:
    sessions.log_in(USER)
    api.expire_tokens()
    api.users["user@example.com"].password = "changed-since"
    api.fail_next("/login", delay_s=0.2)
    together = threading.Barrier(50)

    def one(_index: int) -> LoaderError:
        together.wait()
        with pytest.raises(InvalidCredentials) as caught:
            sessions.call(fragment(client))
        return caught.value

    with ThreadPoolExecutor(50) as pool:
        errors = list(pool.map(one, range(50)))
    assert logins(api) == 2
    assert len({id(error) for error in errors}) == 50


def test_a_caller_with_an_older_token_just_repeats(sessions: Sessions, api: DevResourceApi, client: ApiClient) -> None:
    sessions.log_in(USER)
    entered, renewed = threading.Event(), threading.Event()
    tokens: list[str] = []

    def slow(token: str, _credentials: Credentials) -> bytes:
        tokens.append(token)
        if len(tokens) == 1:
            entered.set()
            assert renewed.wait(10)
        return client.key_fragment(token)

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(sessions.call, slow)
        assert entered.wait(10)
        api.expire_tokens()
        sessions.call(fragment(client))
        renewed.set()
        assert late.result(10) == b"fragment"
    assert logins(api) == 2
    assert len(set(tokens)) == 2


def test_a_users_log_in_outlives_a_renewal_of_the_older_session(sessions: Sessions, api: DevResourceApi) -> None:
    sessions.log_in(USER)
    reached, proceed = threading.Event(), threading.Event()
    users: list[str] = []

    def refused_once(_token: str, credentials: Credentials) -> str:
        users.append(credentials.email)
        if len(users) == 1:
            raise TokenRefused("no")
        return credentials.email

    inner = sessions._opened

    def delayed(credentials: Credentials) -> object:
        session = inner(credentials)
        if credentials == USER:
            reached.set()
            assert proceed.wait(10)
        return session

    sessions._opened = delayed  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(sessions.call, refused_once)
        assert reached.wait(10)
        sessions.log_in(OTHER)
        proceed.set()
        assert call.result(10) == "other@example.com"
    assert sessions.user is not None
    assert sessions.user.email == "other@example.com"


@pytest.mark.parametrize(("status", "kind"), [(423, AccountLocked), (429, RateLimited)])
def test_own_log_ins_wait_as_told_and_users_do_not(  # noqa: PLR0917
    sessions: Sessions, api: DevResourceApi, client: ApiClient, clock: Clock, status: int, kind: type[LoaderError]
) -> None:
    sessions.log_in(USER)
    api.expire_tokens()
    api.fail_next("/login", status, headers={"Retry-After": "40"})
    for elapsed, left in ((0.0, 40), (10.5, 30), (29.0, 1)):
        clock.now += elapsed
        with pytest.raises(kind) as caught:
            sessions.call(fragment(client))
        assert caught.value.retry_after_s == left
    assert logins(api) == 2
    clock.now += 1.0
    assert sessions.call(fragment(client)) == b"fragment"
    assert logins(api) == 3

    api.expire_tokens()
    api.fail_next("/login", status, headers={"Retry-After": "40"})
    with pytest.raises(kind):
        sessions.call(fragment(client))
    sessions.log_in(USER)
    api.expire_tokens()
    assert sessions.call(fragment(client)) == b"fragment"


def test_a_users_refusal_holds_for_the_loaders_own_log_ins(
    sessions: Sessions, api: DevResourceApi, client: ApiClient
) -> None:
    sessions.log_in(USER)
    api.fail_next("/login", 429, headers={"Retry-After": "5"}, times=2)
    for _ in range(2):
        with pytest.raises(RateLimited):
            sessions.log_in(USER)
    assert logins(api) == 3
    api.expire_tokens()
    with pytest.raises(RateLimited):
        sessions.call(fragment(client))
    assert logins(api) == 3


def test_another_accounts_lock_is_not_ours(sessions: Sessions, api: DevResourceApi, client: ApiClient) -> None:
    sessions.log_in(USER)
    api.fail_next("/login", 423, headers={"Retry-After": "50"})
    with pytest.raises(AccountLocked):
        sessions.log_in(OTHER)
    api.expire_tokens()
    assert sessions.call(fragment(client)) == b"fragment"


def test_a_rate_limit_on_a_call_makes_log_ins_wait_too(
    sessions: Sessions, api: DevResourceApi, client: ApiClient
) -> None:
    sessions.log_in(USER)
    api.fail_next("/binary-split", 429, headers={"Retry-After": "50"})
    with pytest.raises(RateLimited):
        sessions.call(fragment(client))
    assert sessions.call(fragment(client)) == b"fragment"
    api.expire_tokens()
    with pytest.raises(RateLimited):
        sessions.call(fragment(client))


def test_refused_credentials_are_not_hammered(
    sessions: Sessions, api: DevResourceApi, client: ApiClient, clock: Clock, conf: Path
) -> None:
    write_conf(conf, password="wrong-password")
    for _ in range(3):
        with pytest.raises(InvalidCredentials) as caught:
            sessions.call(fragment(client))
        assert caught.value.retry_after_s is None
    assert logins(api) == 1
    write_conf(conf)
    assert sessions.call(fragment(client)) == b"fragment"

    api.expire_tokens()
    api.users["user@example.com"].disabled = True
    for _ in range(2):
        with pytest.raises(InvalidCredentials):
            sessions.call(fragment(client))
    assert logins(api) == 3
    api.users["user@example.com"].disabled = False
    clock.now += REFUSED_PAUSE_S
    assert sessions.call(fragment(client)) == b"fragment"


def test_after_an_outage_the_next_call_works(sessions: Sessions, api: DevResourceApi, client: ApiClient) -> None:
    sessions.log_in(USER)
    api.stop()
    with pytest.raises(UpstreamUnavailable):
        sessions.call(fragment(client))
    api.start()
    api.expire_tokens()
    assert sessions.call(fragment(client)) == b"fragment"


def test_a_token_that_fails_its_check_opens_no_session(client: ApiClient, conf: Path) -> None:
    def refuse(_token: str, /) -> dict[str, object]:
        raise NotAuthenticated("signature")

    sessions = Sessions(lambda: client, lambda: refuse, conf)
    with pytest.raises(NotAuthenticated, match="signature"):
        sessions.log_in(USER)
    assert not sessions.authenticated


def test_no_secret_in_a_session(sessions: Sessions) -> None:
    sessions.log_in(USER)
    shown = repr(sessions._session) + repr(vars(sessions))
    assert "password1" not in shown
    assert "eyJ" not in shown
