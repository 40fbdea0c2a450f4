"""Loads that share a run: how many runs there are, who gets which, and that nobody's reader is lost."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from azaion_loader import security
from azaion_loader.errors import ResourceNotFound, UpstreamUnavailable
from azaion_loader.loaded_resource import LoadedResource
from azaion_loader.single_flight import LoadFlights


class Loads:
    """Loads one small resource, each time that `go` allows it."""

    def __init__(self, tmp_path: Path) -> None:
        sealed = security.encrypt(b"plain", security.resource_key())
        self.small = sealed[:9]
        self.path = tmp_path / "part"
        self.path.write_bytes(sealed[9:])
        self.go = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.runs = 0
        self.error: Exception | None = None

    def load(self, _folder: str, _name: str) -> LoadedResource:
        self.runs += 1
        self.started.release()
        assert self.go.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        with self.path.open("rb") as file:
            return LoadedResource(os.dup(file.fileno()), self.small, security.resource_key())


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    return Loads(tmp_path)


async def begun(loads: Loads) -> None:
    assert await asyncio.to_thread(loads.started.acquire, timeout=10)


def test_fifty_loads_are_two_runs(loads: Loads) -> None:
    async def run() -> None:
        flights = LoadFlights(loads.load, 2)
        first = asyncio.create_task(flights.load("models", "m"))
        await begun(loads)
        others = [asyncio.create_task(flights.load("models", "m")) for _ in range(49)]
        await asyncio.sleep(0)
        loads.go.release(2)
        for loaded in await asyncio.gather(first, *others):
            assert b"".join(loaded.chunks()) == b"plain"
            loaded.close()

    asyncio.run(run())
    assert loads.runs == 2


def test_waiters_hold_no_threads(loads: Loads) -> None:
    async def run() -> None:
        flights = LoadFlights(loads.load, 2)
        first = [asyncio.create_task(flights.load("models", "a")) for _ in range(30)]
        await begun(loads)
        other = asyncio.create_task(flights.load("models", "b"))
        await begun(loads)
        loads.go.release(10)
        for loaded in await asyncio.gather(other, *first):
            loaded.close()

    asyncio.run(run())


def test_unreachable_is_told_to_all_at_once(loads: Loads) -> None:
    loads.error = UpstreamUnavailable("no")

    async def run() -> None:
        flights = LoadFlights(loads.load, 2)
        first = asyncio.create_task(flights.load("models", "m"))
        await begun(loads)
        second = asyncio.create_task(flights.load("models", "m"))
        await asyncio.sleep(0)
        loads.go.release()
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UpstreamUnavailable] * 2

    asyncio.run(run())
    assert loads.runs == 1


def test_missing_is_asked_again_for_those_who_came_later(loads: Loads) -> None:
    loads.error = ResourceNotFound("none")

    async def run() -> None:
        flights = LoadFlights(loads.load, 2)
        first = asyncio.create_task(flights.load("models", "m"))
        await begun(loads)
        second = asyncio.create_task(flights.load("models", "m"))
        await asyncio.sleep(0)
        loads.go.release()
        with pytest.raises(ResourceNotFound):
            await first
        loads.error = None
        loads.go.release()
        (await second).close()

    asyncio.run(run())
    assert loads.runs == 2


def test_cancelled_waiters_cost_no_run_and_no_descriptor(loads: Loads) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def run() -> None:
        flights = LoadFlights(loads.load, 2)
        first = asyncio.create_task(flights.load("models", "m"))
        await begun(loads)
        before = descriptors()
        second = asyncio.create_task(flights.load("models", "m"))
        await asyncio.sleep(0)
        for task in (first, second):
            task.cancel()
        await asyncio.wait([first, second])
        loads.go.release()
        while flights._flights:
            await asyncio.sleep(0.001)
        assert descriptors() == before

    asyncio.run(run())
    assert loads.runs == 1
