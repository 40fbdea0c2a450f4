"""What survives a kill, and what happens to a journal that a disk has eaten."""

import json
from pathlib import Path

import pytest

from azaion_loader.unlock_journal import Ledger, RunRecord, TagMove, UnlockJournal
from azaion_loader.unlock_state import UnlockState


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    journal = UnlockJournal(tmp_path / "state")
    assert journal.read_run() is None
    moves = (TagMove("a:1", "sha256:old", "r:1"), TagMove("b:1", None, "r:2"))
    record = RunRecord("id", UnlockState.LOADING_IMAGES, None, 0.0, {"bytes_done": 3}, moves)
    journal.write_run(record)
    read = journal.read_run()
    assert read is not None
    assert read.updated > 1e9
    assert read == RunRecord("id", UnlockState.LOADING_IMAGES, None, read.updated, {"bytes_done": 3}, moves)


def test_a_ledger_comes_back_as_it_was(tmp_path: Path) -> None:
    journal = UnlockJournal(tmp_path)
    assert journal.read_ledger() == Ledger()
    journal.write_ledger(Ledger(frozenset({"sha256:b", "sha256:a"}), "2026-01-01T00:00:00Z"))
    assert journal.read_ledger() == Ledger(frozenset({"sha256:a", "sha256:b"}), "2026-01-01T00:00:00Z")


GOOD = {
    "format": 1,
    "run_id": "id",
    "state": "ready",
    "error": None,
    "updated": 1.0,
    "progress": {},
    "switch": [{"tag": "a:1", "before": None, "rollback": "r:1"}],
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"[]",
        b'{"format": 2}',
        b"\xff\xfe",
        json.dumps(GOOD | {"state": "sleeping"}).encode(),
        json.dumps(GOOD | {"updated": None}).encode(),
        json.dumps(GOOD | {"switch": [{"tag": "a:1"}]}).encode(),
        json.dumps(GOOD | {"switch": [{"tag": 1, "before": None, "rollback": "r"}]}).encode(),
        json.dumps(GOOD | {"switch": [{"tag": "a", "before": 7, "rollback": "r"}]}).encode(),
        json.dumps({key: value for key, value in GOOD.items() if key != "error"}).encode(),
    ],
)
def test_a_journal_in_another_form_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "unlock.json").write_bytes(content)
    assert UnlockJournal(tmp_path).read_run() is None


def test_the_good_form_is_read(tmp_path: Path) -> None:
    (tmp_path / "unlock.json").write_text(json.dumps(GOOD))
    record = UnlockJournal(tmp_path).read_run()
    assert record is not None
    assert record.switch == (TagMove("a:1", None, "r:1"),)


@pytest.mark.parametrize("content", [b"{", b'{"format": 1}', b'{"format": 1, "loaded": [1]}'])
def test_a_ledger_in_another_form_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images.json").write_bytes(content)
    assert UnlockJournal(tmp_path).read_ledger() == Ledger()


def test_a_journal_that_is_a_directory_counts_as_absent(tmp_path: Path) -> None:
    (tmp_path / "unlock.json").mkdir()
    assert UnlockJournal(tmp_path).read_run() is None
