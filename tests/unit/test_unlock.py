"""unlock.py without an engine: in which order a run writes its states down and shows them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from azaion_loader.credentials import Credentials
from azaion_loader.errors import UpstreamUnavailable
from azaion_loader.settings import Settings
from azaion_loader.unlock import UnlockJob
from azaion_loader.unlock_journal import RunRecord, UnlockJournal

WAIT_S = 20.0


def unavailable() -> bytes:
    raise UpstreamUnavailable("gone")


def test_a_state_is_written_down_before_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a loader that is killed in between tells of an earlier state than clients have seen."""
    archive = tmp_path / "images.enc"
    archive.write_bytes(b"never read")
    engine: Any = SimpleNamespace(watched=lambda _: engine, info=lambda: None, images=list)
    settings = Settings.from_environment(
        {"IMAGES_PATH": str(archive), "LOADER_DATA_DIR": str(tmp_path), "DEVICE_CONF": str(tmp_path / "none")}
    )
    job = UnlockJob(
        settings,
        lambda: engine,
        log_in=lambda _: None,
        remember=lambda _: None,
        fetch_key_fragment=unavailable,
    )
    shown: list[tuple[str, str]] = []
    write = UnlockJournal.write_run

    def note(journal: UnlockJournal, record: RunRecord) -> None:
        shown.append((record.state, job.status().state))
        write(journal, record)

    monkeypatch.setattr(UnlockJournal, "write_run", note)
    job.start(Credentials("a@example.com", "password"), refresh=True)
    thread = job._thread
    assert thread is not None
    thread.join(WAIT_S)
    assert shown == [("authenticating", "idle"), ("downloading_key", "authenticating"), ("error", "downloading_key")]
    assert job.status().state == "error"
