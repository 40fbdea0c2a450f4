"""The only place that builds objects.

Each is built when it is first used, and its module imported only then: a service that has just started answers
`/health` without the HTTP client, the object store's client or the compiled code in memory.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

from fastapi import Depends, Request
from loguru import logger

from azaion_loader.settings import InvalidSetting, Settings

if TYPE_CHECKING:
    from azaion_loader.api_client import ApiClient
    from azaion_loader.sessions import Sessions
    from azaion_loader.unlock import UnlockJob

T = TypeVar("T")

_API_TOKEN_MAX_BYTES = 4096
# Polls have threads of their own: they answer also while every thread for requests waits for something slow.
_POLL_THREADS = 2


class Services:
    """The service's objects, for as long as it runs; safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._building = threading.RLock()
        self._polls = ThreadPoolExecutor(_POLL_THREADS, thread_name_prefix="poll")
        self._api: ApiClient | None = None
        self._sessions: Sessions | None = None
        self._unlock_job: UnlockJob | None = None

    @property
    def sessions(self) -> "Sessions":
        """Log-ins and what needs one."""
        with self._building:
            if self._sessions is None:
                from azaion_loader.sessions import Sessions  # noqa: PLC0415 - on first use

                self._sessions = Sessions(self._api_client, self.settings)
            return self._sessions

    @property
    def unlock_job(self) -> "UnlockJob":
        """The unlock job, which has read what an earlier process left."""
        with self._building:
            if self._unlock_job is None:
                from azaion_loader.docker_cli import DockerCli  # noqa: PLC0415 - on first use
                from azaion_loader.unlock import UnlockJob  # noqa: PLC0415

                settings = self.settings
                job = UnlockJob(
                    settings,
                    lambda: DockerCli(settings.docker_cli, settings.docker_timeout_s, settings.docker_stall_timeout_s),
                    log_in=lambda credentials: self.sessions.log_in(credentials),
                    remember=lambda credentials: self.sessions.remember(credentials),
                    fetch_key_fragment=lambda: self.sessions.call(
                        lambda token, _credentials: self._api_client().key_fragment(token)
                    ),
                )
                job.recover()
                self._unlock_job = job
            return self._unlock_job

    @property
    def authenticated(self) -> bool:
        """Whether a token is held; builds nothing and waits for nothing."""
        return self._sessions is not None and self._sessions.authenticated

    async def poll(self, question: "Callable[[UnlockJob], T]") -> T:
        """Ask the unlock job something quick, without a thread of the pool that requests share."""
        return await asyncio.get_running_loop().run_in_executor(self._polls, lambda: question(self.unlock_job))

    def start(self) -> None:
        """Look for what an earlier run left, in the background: the first answer need not wait for it."""
        threading.Thread(target=self._recover, name="recover", daemon=True).start()

    def close(self) -> None:
        """End what runs, within the bounds of its parts."""
        if self._unlock_job is not None:
            self._unlock_job.shutdown()
        self._polls.shutdown(wait=False, cancel_futures=True)
        if self._api is not None:
            self._api.close()

    def api_token(self) -> bytes | None:
        """Return the bearer token that callers of this service need, if LOADER_API_TOKEN_FILE names one.

        Raises InvalidSetting if the file can't be read or holds no usable token: a service that was to be locked
        must not start open.
        """
        path = self.settings.loader_api_token_file
        return None if path is None else _read_token(path)

    def _api_client(self) -> "ApiClient":
        with self._building:
            if self._api is None:
                from azaion_loader.api_client import ApiClient  # noqa: PLC0415 - on first use

                settings = self.settings
                self._api = ApiClient(
                    settings.resource_api_url,
                    connect_timeout_s=settings.connect_timeout_s,
                    login_timeout_s=settings.login_timeout_s,
                    request_timeout_s=settings.request_timeout_s,
                    stall_timeout_s=settings.stall_timeout_s,
                )
            return self._api

    def _recover(self) -> None:
        try:
            _ = self.unlock_job
        except Exception:  # noqa: BLE001 - the thread's last door; the next caller meets the same fault and hears of it
            logger.exception("What an earlier unlock run left could not be read")


async def get_services(request: Request) -> Services:
    """Return the application's objects. Async: a plain function would need a thread of the pool, which may be full."""
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(get_services)]


def _read_token(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            token = file.read(_API_TOKEN_MAX_BYTES + 1).strip()
    except OSError as err:
        raise InvalidSetting(f"LOADER_API_TOKEN_FILE: {path} can't be read ({err.strerror})") from err
    if not token or len(token) > _API_TOKEN_MAX_BYTES or not all(0x20 < byte < 0x7F for byte in token):
        raise InvalidSetting(f"LOADER_API_TOKEN_FILE: {path} must hold one word of visible ASCII characters")
    return token
