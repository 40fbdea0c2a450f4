"""Progress is monotone, true, and 100 % only with `ready`."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from azaion_loader.progress import ProgressMeter
from azaion_loader.unlock_state import UnlockState


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_fresh_meter_knows_nothing() -> None:
    figures = ProgressMeter().snapshot()
    assert (figures.run_id, figures.state, figures.percent) == (None, UnlockState.IDLE, 0.0)
    assert (figures.rate_bytes_per_s, figures.seconds_left, figures.seconds_since_change) == (None, None, None)


def test_rate_and_rest_follow_the_clock() -> None:
    clock = Clock()
    meter = ProgressMeter("run", clock)
    meter.enter(UnlockState.LOADING_IMAGES, "loading")
    meter.expect_bytes(1000)
    meter.add_bytes(100)
    clock.now += 2.0
    meter.add_bytes(100)
    figures = meter.snapshot()
    assert (figures.rate_bytes_per_s, figures.seconds_left) == (50.0, 16.0)
    assert figures.stage == "loading"
    clock.now += 2.0
    figures = meter.snapshot()
    assert figures.rate_bytes_per_s == 25.0, "a stall pulls the rate down"
    assert figures.seconds_since_change == 2.0


def test_the_rate_forgets_what_is_older_than_its_window() -> None:
    clock = Clock()
    meter = ProgressMeter("run", clock)
    meter.enter(UnlockState.LOADING_IMAGES)
    meter.expect_bytes(1 << 40)
    meter.add_bytes(1 << 30)
    for _ in range(40):
        clock.now += 1.0
        meter.add_bytes(10)
    rate = meter.snapshot().rate_bytes_per_s
    assert rate is not None
    assert 9 <= rate <= 12


def test_finish_is_the_only_way_to_one_hundred() -> None:
    meter = ProgressMeter("run")
    meter.enter(UnlockState.LOADING_IMAGES)
    meter.expect_bytes(10)
    meter.images(3, 7)
    meter.add_bytes(50)
    assert meter.snapshot().percent == 99.0
    assert meter.snapshot().bytes_done == 10
    finished = meter.finished()
    assert meter.snapshot().percent == 99.0
    meter.finish()
    figures = meter.snapshot()
    assert (figures.percent, figures.state, figures.images_done) == (100.0, UnlockState.READY, 7)
    assert (finished.percent, finished.state, finished.images_done) == (100.0, UnlockState.READY, 7)


def test_notes_are_added_to_each_other() -> None:
    meter = ProgressMeter("run")
    meter.note("One.")
    meter.note("Two.")
    assert meter.snapshot().note == "One. Two."
    assert meter.snapshot().as_json()["note"] == "One. Two."


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("expect"), st.integers(0, 10**9)),
            st.tuples(st.just("add"), st.integers(-5, 10**9)),
            st.tuples(st.just("images"), st.integers(0, 9)),
        ),
        max_size=40,
    )
)
def test_no_figure_ever_goes_back(steps: list[tuple[str, int]]) -> None:
    meter = ProgressMeter("run")
    meter.enter(UnlockState.DECRYPTING)
    last = meter.snapshot()
    for name, value in steps:
        if name == "expect":
            meter.expect_bytes(value)
        elif name == "add":
            meter.add_bytes(value)
        else:
            meter.images(value, 7)
        figures = meter.snapshot()
        assert figures.percent >= last.percent
        assert figures.bytes_done >= last.bytes_done
        assert figures.images_done >= last.images_done
        assert figures.percent < 100.0
        assert figures.bytes_done <= figures.bytes_total
        last = figures


def test_threads_lose_no_bytes() -> None:
    meter = ProgressMeter("run")
    meter.expect_bytes(4 * 1000)
    threads = [threading.Thread(target=lambda: [meter.add_bytes(1) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.snapshot().bytes_done == 4000
