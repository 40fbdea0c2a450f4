"""The ranges of a part file, and which of them a state file may promise."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azaion_loader import part_state
from azaion_loader.part_state import PartState, Ranges, discard, load_ranges, state_path

PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


@given(PAIRS)
def test_ranges_are_the_union_of_what_was_added(pairs: list[tuple[int, int]]) -> None:
    ranges = Ranges(pairs)
    members = {n for a, b in pairs for n in range(a, b)}
    assert {n for a, b in ranges.pairs() for n in range(a, b)} == members
    assert ranges.total() == len(members)
    assert {n for a, b in ranges.missing(60) for n in range(a, b)} == set(range(60)) - members
    assert ranges.prefix() == next(n for n in range(62) if n not in members)
    edges = [edge for pair in ranges.pairs() for edge in pair]
    assert edges == sorted(set(edges))


@pytest.fixture
def state() -> PartState:
    return PartState("models", "a.big", "etag", 100, written=[(0, 10), (20, 30)], synced=[(0, 10)])


def test_written_ranges_count_in_the_same_boot_only(
    state: PartState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    state.save(path, durable=False)
    assert load_ranges(path, state, 100) == [(0, 10), (20, 30)]
    monkeypatch.setattr(part_state, "boot_id", lambda: "another")
    assert load_ranges(path, state, 100) == [(0, 10)]
    monkeypatch.setattr(part_state, "boot_id", lambda: "")
    assert load_ranges(path, state, 100) == [(0, 10)]


def test_another_object_starts_clean(state: PartState, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    state.save(path, durable=True)
    for change in ({"bucket": "b"}, {"key": "k"}, {"etag": "e"}, {"size": 101}):
        other = PartState(**{"bucket": "models", "key": "a.big", "etag": "etag", "size": 100, **change})
        assert load_ranges(path, other, 100) == []


def test_ranges_beyond_the_file_are_not_believed(state: PartState, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    state.save(path, durable=True)
    assert load_ranges(path, state, 29) == []


@pytest.mark.parametrize(
    "written",
    [
        None,
        {},
        [[5, 5]],
        [[5, 1]],
        [[-1, 5]],
        [[0, 101]],
        [[0, 5], [4, 9]],
        [[0, 5], [5, 9]],
        [[True, 5]],
        [[0, 5.0]],
        [[0]],
        ["ab"],
    ],
)
def test_a_damaged_state_starts_clean(state: PartState, tmp_path: Path, written: object) -> None:
    path = tmp_path / "x.json"
    state.save(path, durable=False)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "written": written}))
    assert load_ranges(path, state, 100) == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 200, b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_a_torn_state_starts_clean(state: PartState, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert load_ranges(path, state, 100) == []


def test_discard_leaves_nothing(state: PartState, tmp_path: Path) -> None:
    part = tmp_path / "a.part"
    part.write_bytes(b"x")
    state.save(state_path(part), durable=True)
    (tmp_path / "a.part.json.next").write_bytes(b"")
    discard(part)
    assert list(tmp_path.iterdir()) == []
