"""Counters and the page that shows them."""

import threading

import pytest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as _OTHER_FORMAT
from prometheus_client.parser import text_string_to_metric_families

from azaion_loader.metrics import COUNTERS, Metrics
from azaion_loader.metrics_page import render
from azaion_loader.progress import ProgressMeter
from azaion_loader.unlock_state import UnlockState

assert _OTHER_FORMAT  # the page is not in that one


def test_sums_by_label() -> None:
    metrics = Metrics()
    metrics.count("upstream_answers", upstream="store", answer="200")
    metrics.count("upstream_answers", 2, answer="200", upstream="store")
    metrics.count("unlock_bytes", 5)
    assert metrics.series()["upstream_answers"] == {("store", "200"): 3.0}
    assert metrics.series()["unlock_bytes"] == {(): 5.0}


@pytest.mark.parametrize(("name", "labels"), [("nothing", {}), ("failures", {}), ("failures", {"word": "x"})])
def test_words_outside_the_table(name: str, labels: dict[str, str]) -> None:
    with pytest.raises(KeyError):
        Metrics().count(name, **labels)


def test_no_count_is_lost_between_threads() -> None:
    metrics = Metrics()
    threads = [threading.Thread(target=lambda: [metrics.count("unlock_bytes") for _ in range(2000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.series()["unlock_bytes"] == {(): 16000.0}


def test_the_page_is_what_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.count("failures", code='odd "code"\\\n')
    metrics.count("unlock_runs", result="ready")
    meter = ProgressMeter("run")
    meter.enter(UnlockState.DECRYPTING)
    page = render(meter.snapshot(), authenticated=True, free_bytes=None, counted=metrics).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert {f"azaion_loader_{name}" for name in COUNTERS} <= set(families)
    states = {sample.labels["state"]: sample.value for sample in families["azaion_loader_unlock_state"].samples}
    assert set(states) == {state.value for state in UnlockState}
    assert [name for name, value in states.items() if value] == ["decrypting"]
    assert families["azaion_loader_failures"].samples[0].labels == {"code": 'odd "code"\\\n'}
    assert families["azaion_loader_authenticated"].samples[0].value == 1.0
    assert "azaion_loader_data_free_bytes" not in families


def test_a_run_counts_its_stages() -> None:
    from azaion_loader.metrics import METRICS  # noqa: PLC0415 - the process's own

    before = METRICS.series()
    now = [0.0]
    meter = ProgressMeter("run", clock=lambda: now[0])
    meter.enter(UnlockState.AUTHENTICATING)
    now[0] = 2.0
    meter.enter(UnlockState.DECRYPTING)
    now[0] = 5.0
    meter.expect_bytes(10)
    meter.add_bytes(4)
    meter.finish()
    after = METRICS.series()

    def grown(name: str, *labels: str) -> float:
        return after[name].get(labels, 0.0) - before[name].get(labels, 0.0)

    assert grown("unlock_stage_seconds", "authenticating") == pytest.approx(2.0)
    assert grown("unlock_stage_seconds", "decrypting") == pytest.approx(3.0)
    assert grown("unlock_stages", "decrypting") == 1.0
    assert grown("unlock_bytes") == 4.0
