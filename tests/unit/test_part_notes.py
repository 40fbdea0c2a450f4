"""Notes: what is remembered, what outlives a part, and what a damaged note may not do."""

from dataclasses import replace
from pathlib import Path

import pytest

from azaion_loader.part_notes import NameMemory, PartNote, PartNotes

NOTE = PartNote("a" * 64, 1234, "etag-2", "b" * 64, "c" * 64)


@pytest.fixture
def notes(tmp_path: Path) -> PartNotes:
    return PartNotes(tmp_path)


def test_unknown_name_is_not_known(notes: PartNotes) -> None:
    assert notes.read("models", "m.bin") == NameMemory()
    assert notes.last_used_s("models", "m.bin") is None


def test_part_is_remembered(notes: PartNotes) -> None:
    notes.remember_part("models", "m.bin", NOTE)
    assert notes.read("models", "m.bin") == NameMemory(NOTE, seen_in_format_1=True)
    assert notes.path("models", "m.bin").stat().st_mode & 0o777 == 0o600


def test_part_without_mac_does_not_mark_the_name(notes: PartNotes) -> None:
    notes.remember_part("models", "m.bin", replace(NOTE, mac=None))
    assert not notes.read("models", "m.bin").seen_in_format_1


def test_mark_outlives_the_part_and_later_parts_without_mac(notes: PartNotes) -> None:
    notes.remember_part("models", "m.bin", NOTE)
    notes.forget_part("models", "m.bin")
    assert notes.read("models", "m.bin") == NameMemory(None, seen_in_format_1=True)
    notes.remember_part("models", "m.bin", replace(NOTE, mac=None))
    assert notes.read("models", "m.bin").seen_in_format_1


def test_forgetting_an_unmarked_part_leaves_no_file(notes: PartNotes) -> None:
    notes.remember_part("models", "m.bin", replace(NOTE, mac=None))
    notes.forget_part("models", "m.bin")
    notes.forget_part("models", "m.bin")
    assert not notes.path("models", "m.bin").exists()


def test_touch_moves_the_last_use(notes: PartNotes) -> None:
    notes.touch("models", "m.bin")
    notes.remember_part("models", "m.bin", NOTE)
    before = notes.last_used_s("models", "m.bin")
    notes.touch("models", "m.bin")
    after = notes.last_used_s("models", "m.bin")
    assert before is not None
    assert after is not None
    assert after >= before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        b'{"part": null}',
        b'{"part": null, "seen_in_format_1": "no"}',
        b'{"part": {}, "seen_in_format_1": false}',
        b'{"part": 7, "seen_in_format_1": false}',
        b" " * 20_000,
    ],
)
def test_damaged_note_describes_no_part_and_counts_as_seen(notes: PartNotes, content: bytes) -> None:
    path = notes.path("models", "m.bin")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert notes.read("models", "m.bin") == NameMemory(None, seen_in_format_1=True)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(NOTE, head_sha256="A" * 64),
        replace(NOTE, sha256="b"),
        replace(NOTE, mac="z" * 64),
        replace(NOTE, size=-1),
    ],
)
def test_note_with_wrong_values_describes_no_part(notes: PartNotes, wrong: PartNote) -> None:
    notes.remember_part("models", "m.bin", wrong)
    assert notes.read("models", "m.bin").part is None
