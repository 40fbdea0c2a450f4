"""Log-ins that nobody waits for: the newest credentials win, one at a time, and a failure ends nothing."""

import threading

from azaion_loader.background_log_in import BackgroundLogIn
from azaion_loader.credentials import Credentials
from azaion_loader.errors import InvalidCredentials


class Upstream:
    """Notes each log-in; holds it until it may go on."""

    def __init__(self, failures: tuple[Exception | None, ...] = ()) -> None:
        self.emails: list[str] = []
        self.current: Credentials | None = None
        self.entered = threading.Semaphore(0)
        self.proceed = threading.Semaphore(0)
        self._failures = list(failures)

    def log_in(self, credentials: Credentials) -> None:
        self.entered.release()
        assert self.proceed.acquire(timeout=10)
        self.emails.append(credentials.email)
        failure = self._failures.pop(0) if self._failures else None
        if failure is not None:
            raise failure
        self.current = credentials

    def is_session_of(self, credentials: Credentials) -> bool:
        return self.current is not None and self.current == credentials


def finish(work: BackgroundLogIn) -> None:
    thread = work._thread
    if thread is not None:
        thread.join(10)
        assert not thread.is_alive()


def test_it_logs_in_without_letting_the_caller_wait() -> None:
    upstream = Upstream()
    work = BackgroundLogIn(upstream.log_in, upstream.is_session_of)
    work.remember(Credentials("a@b", "p"))
    assert upstream.entered.acquire(timeout=10)
    assert upstream.emails == []
    upstream.proceed.release()
    finish(work)
    assert upstream.emails == ["a@b"]


def test_the_newest_wins_and_the_ones_between_are_skipped() -> None:
    upstream = Upstream()
    work = BackgroundLogIn(upstream.log_in, upstream.is_session_of)
    work.remember(Credentials("first", "p"))
    assert upstream.entered.acquire(timeout=10)
    for number in range(100):
        work.remember(Credentials(f"later-{number}", "p"))
    upstream.proceed.release(2)
    finish(work)
    assert upstream.emails == ["first", "later-99"]


def test_credentials_of_the_session_need_no_log_in() -> None:
    upstream = Upstream()
    work = BackgroundLogIn(upstream.log_in, upstream.is_session_of)
    upstream.current = Credentials("a@b", "p")
    work.remember(Credentials("a@b", "p"))
    finish(work)
    assert upstream.emails == []


def test_a_failure_leaves_the_next_one_a_thread() -> None:
    upstream = Upstream((InvalidCredentials("No."), RuntimeError("unforeseen")))
    upstream.proceed.release(3)
    work = BackgroundLogIn(upstream.log_in, upstream.is_session_of)
    for email in ("a", "b", "c"):
        work.remember(Credentials(email, "p"))
        finish(work)
    assert upstream.emails == ["a", "b", "c"]
    assert upstream.current is not None
    assert upstream.current.email == "c"
