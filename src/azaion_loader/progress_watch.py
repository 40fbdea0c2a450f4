"""Waits for news of the unlock run: any number of clients, one task that looks, and no thread for any of them."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from azaion_loader.progress import UnlockProgress

WAIT_MAX_S = 60.0
_LOOK_EVERY_S = 0.25
# Those beyond it are answered at once, as if they had not asked to wait.
_WAITERS_MAX = 512


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    since: str
    news: "asyncio.Future[UnlockProgress]"


class ProgressWatch:
    """Of one event loop. `look` returns the figures of this moment."""

    def __init__(self, look: Callable[[], Awaitable[UnlockProgress]], look_every_s: float = _LOOK_EVERY_S) -> None:
        self._look = look
        self._look_every_s = look_every_s
        self._waiters: set[_Waiter] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self, since: str | None, wait_s: float) -> UnlockProgress:
        """Return the figures as soon as their token is not `since`, and after `wait_s` in any case."""
        figures = await self._look()
        full = self._closed or len(self._waiters) >= _WAITERS_MAX
        if since is None or since != token_of(figures) or wait_s <= 0 or full:
            return figures
        waiter = _Waiter(since, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(min(wait_s, WAIT_MAX_S)):
                return await waiter.news
        except TimeoutError:
            return await self._look()
        finally:
            self._waiters.discard(waiter)

    def close(self) -> None:
        """Answer all who wait, and let nobody wait any more: the service is stopping."""
        self._closed = True

    async def _watch(self) -> None:
        """Look until nobody waits."""
        while self._waiters:
            try:
                figures = await self._look()
            except Exception as err:  # noqa: BLE001 - handed to the waiters, each of which raises it
                self._tell(lambda news, err=err: news.set_exception(err))  # type: ignore[misc]
                return
            token = token_of(figures)
            self._tell(lambda news: news.set_result(figures), None if self._closed else token)  # noqa: B023 - at once
            await asyncio.sleep(self._look_every_s)

    def _tell(self, give: "Callable[[asyncio.Future[UnlockProgress]], None]", known: str | None = None) -> None:
        """Answer all but those who know this token."""
        for waiter in list(self._waiters):
            if waiter.since != known and not waiter.news.done():
                give(waiter.news)


def token_of(figures: UnlockProgress) -> str:
    """Return a word that changes whenever the run moves on, and not with the clock alone."""
    moving = (
        figures.run_id,
        figures.state.value,
        figures.stage,
        figures.bytes_done,
        figures.bytes_total,
        figures.images_done,
        figures.note,
    )
    return hashlib.blake2s(repr(moving).encode(), digest_size=8).hexdigest()
