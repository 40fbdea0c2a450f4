"""Loads of the same resource share one transfer, without a thread for each that waits.

A load that comes while another of its resource runs does not take that one's result, whose small part may have been
read before an upload was answered: it waits for the next run, which all that came meanwhile share, and which as a
rule finds the part in the cache.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import anyio
from anyio import to_thread

from azaion_loader.errors import LoaderError, UpstreamTimeout, UpstreamUnavailable

if TYPE_CHECKING:
    from azaion_loader.loaded_resource import LoadedResource

_Waiter: TypeAlias = "asyncio.Future[LoadedResource]"


@dataclass(slots=True)
class _Flight:
    """The loads of one resource: those that wait for the run under way, and those for the next one."""

    aboard: list[_Waiter] = field(default_factory=list)
    next: list[_Waiter] = field(default_factory=list)


class LoadFlights:
    """Runs `load(folder, name)` in at most `threads` threads of its own. Of one event loop."""

    def __init__(self, load: "Callable[[str, str], LoadedResource]", threads: int) -> None:
        self._load = load
        self._limit = anyio.CapacityLimiter(threads)
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self, folder: str, name: str) -> "LoadedResource":
        """Return the resource, as current as at this call or newer; the caller closes it. Raises what `load` does."""
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        key = (folder, name)
        flight = self._flights.get(key)
        if flight is not None:
            flight.next.append(waiter)
        else:
            self._flights[key] = _Flight(next=[waiter])
            task = asyncio.create_task(self._fly(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().close()
            raise

    async def _fly(self, key: tuple[str, str]) -> None:
        """Run the load until nobody waits for it."""
        flight = self._flights[key]
        try:
            while any(not waiter.done() for waiter in flight.next):
                flight.aboard, flight.next = flight.next, []
                try:
                    loaded = await to_thread.run_sync(self._load, *key, limiter=self._limit)
                except (UpstreamUnavailable, UpstreamTimeout) as err:
                    # Nothing stale in that; and the others have waited for as long as it takes to find out.
                    flight.aboard, flight.next = flight.aboard + flight.next, []
                    _fail(flight.aboard, err)
                except Exception as err:  # noqa: BLE001 - handed to the waiters, each of which raises it
                    _fail(flight.aboard, err)
                else:
                    _share(flight.aboard, loaded)
        finally:
            del self._flights[key]
            for waiter in flight.aboard + flight.next:
                waiter.cancel()


def _share(waiters: list[_Waiter], loaded: "LoadedResource") -> None:
    """Give each waiter a reader of its own."""
    try:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(loaded.duplicate())
    except (LoaderError, OSError) as err:
        _fail(waiters, err)
    finally:
        loaded.close()


def _fail(waiters: list[_Waiter], error: Exception) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(_own(error))


def _own(error: Exception) -> Exception:
    """Return an error of the waiter's own, so that tracebacks don't grow in a shared one."""
    if type(error).__init__ is not LoaderError.__init__ or not isinstance(error, LoaderError):
        return error
    copy = type(error)(error.message, retry_after_s=error.retry_after_s)
    copy.__cause__ = error
    return copy
