"""Who is logged in at the Resource API, and how a call gets a token that holds good.

One log-in serves all callers: when the API refuses a token, the first caller logs in again and the others wait for
it, or find that it has been done. Each call is repeated once. A user's log-in always goes upstream; the loader's own
log-ins keep to what the API asked for (`Retry-After`), and don't hammer it with credentials that it just refused,
which would lock the account.
"""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from azaion_loader.credentials import Credentials
from azaion_loader.device_conf import read_device_credentials
from azaion_loader.errors import (
    AccessDenied,
    AccountLocked,
    Forbidden,
    InvalidCredentials,
    LoaderError,
    NotAuthenticated,
    RateLimited,
    TokenForbidden,
    TokenRefused,
)
from azaion_loader.user import User, user_from_claims

T = TypeVar("T")

# After a refusal that names no time of its own.
REFUSED_PAUSE_S = 30.0
_PAUSES_KEPT = 15


class LoginApi(Protocol):
    """What sessions need of the Resource API's client."""

    def login(self, credentials: Credentials) -> str:
        """Return a token."""


class ClaimsOf(Protocol):
    """Turns a token into its claims, with or without a check."""

    def __call__(self, token: str, /) -> dict[str, object]:
        """Return the claims, or raise NotAuthenticated or UpstreamError."""


@dataclass(frozen=True, slots=True)
class Session:
    """One successful log-in."""

    token: str = field(repr=False)
    # As typed: what the next log-in sends.
    credentials: Credentials
    # With the e-mail as the token names it: what the download key is made of.
    key_credentials: Credentials
    user: User


@dataclass(frozen=True, slots=True)
class _Pause:
    """Until when the loader's own log-ins are not tried, and what they answer meanwhile."""

    until: float
    refusal: AccessDenied
    credentials: Credentials

    def concerns(self, credentials: Credentials) -> bool:
        """Tell whether it is about these: a rate is the device's, a lock the account's, else it's the very pair."""
        if isinstance(self.refusal, RateLimited):
            return True
        if isinstance(self.refusal, AccountLocked):
            return self.credentials.email.casefold() == credentials.email.casefold()
        return self.credentials == credentials


@dataclass(frozen=True, slots=True)
class _Renewal:
    """A new log-in under way in some thread, for all who hold the `stale` session. Its end is the log-in's deadline."""

    stale: Session | None
    outcome: Future[Session] = field(default_factory=Future)

    def wait(self) -> Session:
        """Return the new session; a failure is raised as an error of the waiting thread's own."""
        try:
            return self.outcome.result()
        except LoaderError as err:
            raise type(err)(err.message, retry_after_s=err.retry_after_s) from err


class Sessions:
    """The one session of this process. Thread-safe.

    `api` gives the client when it is first needed, `claims_of` reads (and where a key is configured, checks) tokens;
    `device_conf` may name the device's own credentials, used when nobody has logged in. `clock` counts seconds.
    """

    def __init__(
        self,
        api: Callable[[], LoginApi],
        claims_of: Callable[[], ClaimsOf],
        device_conf: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._claims_of = claims_of
        self._device_conf = device_conf
        self._clock = clock
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._renewal: _Renewal | None = None
        self._pauses: list[_Pause] = []

    @property
    def authenticated(self) -> bool:
        """Whether a token is held."""
        return self._session is not None

    @property
    def user(self) -> User | None:
        """The user of the session."""
        session = self._session
        return session.user if session else None

    def is_of(self, credentials: Credentials) -> bool:
        """Tell whether the session was opened with these credentials, as typed."""
        session = self._session
        return session is not None and session.credentials == credentials

    def log_in(self, credentials: Credentials) -> User:
        """Log in as this user; the credentials become the session's. A failure leaves the earlier session as it was.

        Raises what ApiClient.login does, and NotAuthenticated when the token fails its check.
        """
        session = self._opened(credentials)
        with self._lock:
            self._session = session
            self._pauses.clear()
        return session.user

    def call(self, action: Callable[[str, Credentials], T]) -> T:
        """Return `action(token, credentials)`, with at most one new log-in and one repeat.

        `credentials` carry the password as typed and the e-mail as the token names it, for the download key.
        Raises NotAuthenticated when there is neither session nor device credentials, or the new token is refused too;
        Forbidden likewise; what a log-in raises; and what `action` raises.
        """
        session = self._session or self._renewed(None)
        try:
            return self._act(action, session)
        except (TokenRefused, TokenForbidden):
            session = self._renewed(session)
        try:
            return self._act(action, session)
        except TokenRefused as err:
            raise NotAuthenticated("The Resource API refuses the token even after a new log-in.") from err
        except TokenForbidden as err:
            raise Forbidden("The Resource API does not allow this to the account.") from err

    def _act(self, action: Callable[[str, Credentials], T], session: Session) -> T:
        try:
            return action(session.token, session.key_credentials)
        except (AccountLocked, RateLimited) as err:
            self._note_refusal(err, session.credentials)
            raise

    def _opened(self, credentials: Credentials) -> Session:
        """Log in upstream; the session is not ours yet."""
        try:
            token = self._api().login(credentials)
        except (InvalidCredentials, AccountLocked, RateLimited) as err:
            self._note_refusal(err, credentials)
            raise
        user = user_from_claims(self._claims_of()(token))
        same = user.email == credentials.email
        return Session(token, credentials, credentials if same else Credentials(user.email, credentials.password), user)

    def _renewed(self, stale: Session | None) -> Session:
        """Return a session newer than `stale`: one that somebody has made by now, is making, or our own."""
        with self._lock:
            if self._session is not stale and self._session is not None:
                return self._session
            renewal = self._renewal
            leads = renewal is None or renewal.stale is not stale
            if renewal is None or leads:
                renewal = self._renewal = _Renewal(stale)
        if not leads:
            return renewal.wait()
        try:
            session = self._own_log_in(stale)
        except BaseException as err:
            self._end_renewal(renewal)
            renewal.outcome.set_exception(err)
            raise
        self._end_renewal(renewal)
        renewal.outcome.set_result(session)
        return session

    def _end_renewal(self, renewal: _Renewal) -> None:
        with self._lock:
            if self._renewal is renewal:
                self._renewal = None

    def _own_log_in(self, stale: Session | None) -> Session:
        """Log in with the session's credentials, else the device's."""
        credentials = stale.credentials if stale else read_device_credentials(self._device_conf)
        if credentials is None:
            raise NotAuthenticated("Nobody has logged in, and the device has no credentials of its own.")
        self._respect_pauses(credentials)
        session = self._opened(credentials)
        with self._lock:
            # A user may have logged in meanwhile; that session is the one to keep.
            if self._session is stale:
                self._session = session
                self._pauses.clear()
            return self._session or session

    def _respect_pauses(self, credentials: Credentials) -> None:
        """Raise the API's refusal again while it asks to wait."""
        now = self._clock()
        with self._lock:
            self._pauses = [pause for pause in self._pauses if pause.until > now]
            pause = next((pause for pause in self._pauses if pause.concerns(credentials)), None)
        if pause is not None:
            wrong = isinstance(pause.refusal, InvalidCredentials)
            seconds = None if wrong else math.ceil(pause.until - now)
            raise type(pause.refusal)(pause.refusal.message, retry_after_s=seconds)

    def _note_refusal(self, refusal: AccessDenied, credentials: Credentials) -> None:
        wait_s = REFUSED_PAUSE_S if refusal.retry_after_s is None else float(refusal.retry_after_s)
        pause = _Pause(self._clock() + wait_s, refusal, credentials)
        with self._lock:
            self._pauses = [*self._pauses[-_PAUSES_KEPT:], pause]
