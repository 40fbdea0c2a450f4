"""The long poll: woken by news, bounded in time, without a thread for each who waits."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from azaion_loader.progress import ProgressMeter, UnlockProgress
from azaion_loader.progress_watch import ProgressWatch, token_of
from azaion_loader.unlock_state import UnlockState


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


class Job:
    def __init__(self) -> None:
        self.meter = ProgressMeter("run")
        self.looks = 0
        self.failure: Exception | None = None

    async def look(self) -> UnlockProgress:
        self.looks += 1
        if self.failure is not None:
            raise self.failure
        return self.meter.snapshot()


def test_the_token_moves_with_the_run_and_not_with_the_clock() -> None:
    now = [0.0]
    meter = ProgressMeter("run", clock=lambda: now[0])
    meter.enter(UnlockState.DECRYPTING)
    first = token_of(meter.snapshot())
    now[0] = 100.0
    assert token_of(meter.snapshot()) == first
    meter.expect_bytes(10)
    meter.add_bytes(1)
    assert token_of(meter.snapshot()) != first


@pytest.mark.parametrize(("since", "wait_s"), [(None, 30.0), ("stale", 30.0), ("current", 0.0)])
def test_answers_at_once(since: str | None, wait_s: float) -> None:
    async def scenario() -> None:
        job = Job()
        known = token_of(job.meter.snapshot()) if since == "current" else since
        await ProgressWatch(job.look).wait(known, wait_s)
        assert job.looks == 1

    run(scenario())


def test_a_hundred_wait_without_threads_and_share_the_looks() -> None:
    async def scenario() -> None:
        job = Job()
        watch = ProgressWatch(job.look, look_every_s=0.01)
        since = token_of(job.meter.snapshot())
        threads = set(threading.enumerate())
        waiting = [asyncio.create_task(watch.wait(since, 30.0)) for _ in range(100)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)
        assert set(threading.enumerate()) <= threads
        assert job.looks < 100 + 30
        job.meter.enter(UnlockState.AUTHENTICATING)
        for figures in await asyncio.gather(*waiting):
            assert figures.state is UnlockState.AUTHENTICATING

    run(scenario())


def test_ends_in_time() -> None:
    async def scenario() -> None:
        job = Job()
        started = asyncio.get_running_loop().time()
        since = token_of(job.meter.snapshot())
        figures = await ProgressWatch(job.look).wait(since, 0.2)
        assert token_of(figures) == since
        assert 0.15 < asyncio.get_running_loop().time() - started < 5

    run(scenario())


def test_a_failure_reaches_all_who_wait() -> None:
    async def scenario() -> None:
        job = Job()
        watch = ProgressWatch(job.look, look_every_s=0.01)
        since = token_of(job.meter.snapshot())
        waiting = [asyncio.create_task(watch.wait(since, 30.0)) for _ in range(3)]
        await asyncio.sleep(0.05)
        job.failure = OSError("broken")
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ended] == [OSError] * 3

    run(scenario())


def test_a_stopping_service_answers_all() -> None:
    async def scenario() -> None:
        job = Job()
        watch = ProgressWatch(job.look, look_every_s=0.01)
        since = token_of(job.meter.snapshot())
        waiting = asyncio.create_task(watch.wait(since, 30.0))
        await asyncio.sleep(0.05)
        watch.close()
        assert token_of(await waiting) == since
        await watch.wait(since, 30.0)

    run(scenario())


def test_one_who_goes_away_leaves_nothing() -> None:
    async def scenario() -> None:
        job = Job()
        watch = ProgressWatch(job.look, look_every_s=0.01)
        waiting = asyncio.create_task(watch.wait(token_of(job.meter.snapshot()), 30.0))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.sleep(0.05)
        looks = job.looks
        await asyncio.sleep(0.05)
        assert job.looks == looks

    run(scenario())
