"""Steps side by side: their order, the gate, and what one failure does to the others."""

import threading
import time

import pytest

from azaion_loader import load_streams
from azaion_loader.archive_model import ArchiveIndex
from azaion_loader.errors import DockerFailed, Interrupted
from azaion_loader.load_plan import compose_docker_tar
from azaion_loader.load_streams import LoadStreams, StepRun
from azaion_loader.load_tree import LoadStep

EMPTY = compose_docker_tar(ArchiveIndex((), 0, "docker", False, 1), [])
WAIT_S = 10.0


def go_on() -> None:
    """Never cancels."""


def step(after: int | None = None) -> LoadStep:
    return LoadStep((), EMPTY, after=after)


class Gauge:
    """Knows how many threads were inside its `with` block at once, at `most`."""

    def __init__(self) -> None:
        self.most = self._inside = 0
        self._guard = threading.Lock()

    def __enter__(self) -> None:
        with self._guard:
            self._inside += 1
            self.most = max(self.most, self._inside)

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._inside -= 1


def test_nothing_ends_before_the_gate_and_before_its_base() -> None:
    steps = (step(), step(0), step(0), step(2))
    order: list[int] = []
    begun = threading.Semaphore(0)

    def work(own: LoadStep, run: StepRun) -> None:
        begun.release()
        run.before_end()
        order.append(next(number for number, one in enumerate(steps) if one is own))

    with LoadStreams(steps, work, giving=4, ending=4, cancelled=go_on) as streams:
        streams.start()
        assert begun.acquire(timeout=WAIT_S)
        # What builds on another step leaves the cores to the proof.
        assert not begun.acquire(timeout=0.2)
        assert order == []
        streams.open_gate()
        streams.finish()
    assert sorted(order) == [0, 1, 2, 3]
    assert order[0] == 0
    assert order.index(2) < order.index(3)


@pytest.mark.parametrize("parallel", [1, 2, 9])
def test_fewer_workers_than_steps_do_them_all(parallel: int) -> None:
    done: list[LoadStep] = []
    running = Gauge()

    def work(own: LoadStep, run: StepRun) -> None:
        with running:
            run.before_end()
        done.append(own)

    steps = (step(), step(0), step(1), step(2), step())
    with LoadStreams(steps, work, giving=parallel, ending=parallel, cancelled=go_on) as streams:
        streams.open_gate()
        streams.start()
        streams.finish()
    assert len(done) == 5
    assert running.most <= parallel


def test_who_waits_for_a_base_leaves_its_turn_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the base is being registered, others are given, but only so many wait at once, and few at a time work."""
    monkeypatch.setattr(load_streams, "WAITING_MAX", 2)
    steps = (step(), *(step(0) for _ in range(9)))
    given, registered = threading.Semaphore(0), threading.Event()
    begun: list[LoadStep] = []
    ending = Gauge()

    def work(own: LoadStep, run: StepRun) -> None:
        begun.append(own)
        given.release()
        run.before_end()
        with ending:
            if own.after is None:
                assert registered.wait(WAIT_S)
            time.sleep(0.01)

    with LoadStreams(steps, work, giving=2, ending=2, cancelled=go_on) as streams:
        streams.open_gate()
        streams.start()
        for _ in range(4):
            assert given.acquire(timeout=WAIT_S)
        assert not given.acquire(timeout=0.3)
        registered.set()
        streams.finish()
    assert len(begun) == 10
    assert ending.most == 2


def test_few_are_given_bytes_while_many_end() -> None:
    steps = (step(), *(step(0) for _ in range(6)))
    given, all_given, together = threading.Semaphore(0), threading.Event(), threading.Barrier(3)
    giving = Gauge()

    def work(own: LoadStep, run: StepRun) -> None:
        with giving:
            time.sleep(0.01)
        given.release()
        run.before_end()
        if own.after is None:
            assert all_given.wait(WAIT_S)
        else:
            together.wait(WAIT_S)

    with LoadStreams(steps, work, giving=1, ending=3, cancelled=go_on) as streams:
        streams.open_gate()
        streams.start()
        for _ in steps:
            assert given.acquire(timeout=WAIT_S)
        all_given.set()
        streams.finish()
    assert giving.most == 1


def test_one_failure_ends_the_others_and_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    waiting = threading.Event()

    def work(own: LoadStep, run: StepRun) -> None:
        if own.after is None:
            assert waiting.wait(WAIT_S)
            raise DockerFailed("the first one")
        waiting.set()
        try:
            run.before_end()
        finally:
            ended.append(True)

    monkeypatch.setattr(load_streams, "WAITING_MAX", 0)
    with LoadStreams((step(), step(0), step(0)), work, giving=2, ending=2, cancelled=go_on) as streams:
        streams.start()
        streams.open_gate()
        with pytest.raises(DockerFailed, match="the first one"):
            streams.finish()
    # The third was never begun.
    assert ended == [True]


def test_a_stream_that_was_given_whole_may_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    given, failed, settled = threading.Event(), threading.Event(), threading.Event()

    def work(own: LoadStep, run: StepRun) -> None:
        if own.is_base:
            assert given.wait(WAIT_S)
            failed.set()
            raise DockerFailed("elsewhere")
        run.before_end()
        given.set()
        assert failed.wait(WAIT_S)
        for _ in range(3):
            run.cancelled()
            time.sleep(0.01)
        settled.set()
        monkeypatch.setattr(load_streams, "SETTLE_S", 0.0)
        while True:
            run.cancelled()

    steps = (LoadStep((), EMPTY, is_base=True), step())
    with LoadStreams(steps, work, giving=2, ending=2, cancelled=go_on) as streams:
        streams.open_gate()
        streams.start()
        with pytest.raises(DockerFailed, match="elsewhere"):
            streams.finish()
    assert settled.is_set()


def test_a_stop_ends_all_and_an_error_outside_too() -> None:
    stopping = threading.Event()

    def cancelled() -> None:
        if stopping.is_set():
            raise Interrupted("stopping")

    def work(own: LoadStep, run: StepRun) -> None:
        run.before_end()

    with LoadStreams((step(), step()), work, giving=2, ending=2, cancelled=cancelled) as streams:
        streams.start()
        stopping.set()
        with pytest.raises(Interrupted):
            streams.finish()
    before = set(threading.enumerate())
    other = LoadStreams((step(),), work, giving=1, ending=1, cancelled=go_on)
    other.start()
    other.__exit__(ValueError, ValueError("outside"), None)
    assert set(threading.enumerate()) <= before
    with pytest.raises(ValueError, match="outside"):
        other.finish()
