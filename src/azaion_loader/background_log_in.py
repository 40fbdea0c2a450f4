"""Makes credentials the session's without letting their sender wait."""

import threading
from collections.abc import Callable

from loguru import logger

from azaion_loader.credentials import Credentials
from azaion_loader.errors import LoaderError


class BackgroundLogIn:
    """Logs in with the newest credentials it was given, one log-in at a time, in a thread that ends with its work.

    `is_session_of` tells whether credentials are the session's already: those need no log-in. A failure is logged and
    leaves the session as it was.
    """

    def __init__(self, log_in: Callable[[Credentials], object], is_session_of: Callable[[Credentials], bool]) -> None:
        self._log_in = log_in
        self._is_session_of = is_session_of
        self._guard = threading.Lock()
        self._next: Credentials | None = None
        self._thread: threading.Thread | None = None

    def remember(self, credentials: Credentials) -> None:
        """Log in with `credentials` soon."""
        with self._guard:
            self._next = credentials
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="log-in", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while (credentials := self._take()) is not None:
            try:
                if not self._is_session_of(credentials):
                    self._log_in(credentials)
            except LoaderError as err:
                logger.warning("The session stays as it was: {}", err.message)
            except Exception:  # noqa: BLE001 - the thread's last door: it must end by `_take`, or no other would start
                logger.exception("A log-in in the background failed")

    def _take(self) -> Credentials | None:
        with self._guard:
            credentials, self._next = self._next, None
            if credentials is None:
                self._thread = None
            return credentials
