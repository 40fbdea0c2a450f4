"""`GET /metrics`: the counters and the state of this moment as Prometheus reads them."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from azaion_loader import __version__
from azaion_loader.metrics import COUNTERS, METRICS, Metrics
from azaion_loader.progress import UnlockProgress
from azaion_loader.unlock_state import UnlockState

_PREFIX = "azaion_loader_"


def render(
    progress: UnlockProgress, *, authenticated: bool, free_bytes: int | None, counted: Metrics = METRICS
) -> bytes:
    """Return the page; `free_bytes` is None where the disk can't be asked."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(progress, authenticated, free_bytes, counted))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(self, progress: UnlockProgress, authenticated: bool, free_bytes: int | None, counted: Metrics) -> None:
        self._progress = progress
        self._authenticated = authenticated
        self._free_bytes = free_bytes
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(f"{_PREFIX}build_info", "The running version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        state = GaugeMetricFamily(f"{_PREFIX}unlock_state", "1 for the state of the unlock run", labels=["state"])
        for one in UnlockState:
            state.add_metric([one.value], float(one is self._progress.state))
        yield state
        yield _gauge("unlock_progress_ratio", "Share of the unlock run that is done", self._progress.percent / 100)
        yield _gauge("images_present", "Required images proved in the engine", self._progress.images_done)
        yield _gauge("authenticated", "1 while a token of the Resource API is held", float(self._authenticated))
        if self._free_bytes is not None:
            yield _gauge("data_free_bytes", "Free bytes where parts are cached", self._free_bytes)
        for name, series in self._counted.series().items():
            counter = COUNTERS[name]
            family = CounterMetricFamily(_PREFIX + name, counter.text, labels=counter.labels)
            for labels, amount in sorted(series.items()):
                family.add_metric(labels, amount)
            yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, value=value)
