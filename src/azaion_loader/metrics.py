"""Plain counters of what this process did; `metrics_page` shows them to Prometheus.

Counting is a dictionary look-up under a lock, without an import of anything, so that any floor can afford it. The
names and labels stand in one table, and a word that it lacks is a fault of the program.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counter:
    """What is counted under one name: its help text and the names of its labels."""

    text: str
    labels: tuple[str, ...] = ()


COUNTERS: Mapping[str, Counter] = {
    "unlock_runs": Counter("Unlock runs that ended, by result: ready, or the code of the failure", ("result",)),
    "unlock_stage_seconds": Counter("Time spent in each state of unlock runs", ("state",)),
    "unlock_stages": Counter("States of unlock runs that were left", ("state",)),
    "unlock_bytes": Counter("Bytes proved or given to the container engine"),
    "cache_lookups": Counter("Loads by whether the cached part could be used: hit or miss", ("result",)),
    "resource_bytes": Counter("Plaintext bytes of models, by direction: sent to clients or received", ("direction",)),
    "upstream_answers": Counter(
        "Calls to the Resource API and the object store, by status or by the code of the failure",
        ("upstream", "answer"),
    ),
    "upstream_seconds": Counter("Time that those calls took", ("upstream",)),
    "failures": Counter("Failures answered to clients, by code", ("code",)),
}

Series = Mapping[tuple[str, ...], float]


class Metrics:
    """Sums by name and labels; safe to use from several threads."""

    def __init__(self, counters: Mapping[str, Counter] = COUNTERS) -> None:
        self._counters = counters
        self._guard = threading.Lock()
        self._sums: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in counters}
        for name, counter in counters.items():
            if not counter.labels:
                self._sums[name][()] = 0.0

    def count(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Add to one sum. Raises KeyError for a name or a label outside the table."""
        key = tuple(labels[label] for label in self._counters[name].labels)
        with self._guard:
            sums = self._sums[name]
            sums[key] = sums.get(key, 0.0) + amount

    def series(self) -> dict[str, Series]:
        """Return a copy of all sums."""
        with self._guard:
            return {name: dict(sums) for name, sums in self._sums.items()}


# One for the process, as its log is: what is counted belongs to no object.
METRICS = Metrics()
count = METRICS.count
