"""The log: one record a line, secrets masked, a file a day, and a file system that can't hurt the service."""

import io
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from loguru import logger

from azaion_loader import logs
from azaion_loader.logs import DailyFile, clean, set_up_logs

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ +[\w.]+: .*")


class Console:
    """What was written to standard error so far."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._captured.readouterr().err
        return self._text


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Iterator[Console]:
    """Standard error, and the loggers as they were afterwards."""
    root, handlers, level = logging.root, logging.root.handlers, logging.root.level
    yield Console(capsys)
    logger.remove()
    logger.configure(patcher=lambda _record: None)
    root.handlers, root.level = handlers, level


def log_file(directory: Path) -> str:
    return (directory / f"log_loader_{datetime.now():%Y%m%d}.txt").read_text()


def test_records_reach_console_and_file(console: Console, tmp_path: Path) -> None:
    set_up_logs(tmp_path / "deep" / "Logs")
    logger.info("Hello {}", "loader")
    logging.getLogger("uvicorn.error").warning("From %s", "outside")
    for text in (console.getvalue(), log_file(tmp_path / "deep" / "Logs")):
        first, second = text.splitlines()
        assert LINE.fullmatch(first)
        assert first.endswith("Hello loader")
        assert " WARNING  uvicorn.error: From outside" in second
        assert "\x1b" not in text


def test_setting_up_again_does_not_double_records(console: Console, tmp_path: Path) -> None:
    set_up_logs(tmp_path)
    set_up_logs(tmp_path)
    logger.info("once")
    assert console.getvalue().count("once") == 1
    assert log_file(tmp_path).count("once") == 1


def test_colour_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, console: Console, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    set_up_logs(tmp_path)
    logger.error("red")
    assert "\x1b[" in console.getvalue()
    assert "\x1b" not in log_file(tmp_path)


def test_no_record_forges_another(console: Console, tmp_path: Path) -> None:
    set_up_logs(tmp_path)
    forged = "x\n2026-01-01 00:00:00.000 INFO     azaion_loader: all is well\r\x1b[2Jy\x85z\u2028q\u202er"
    logger.warning("Name: {}", forged)
    logging.getLogger("outside").error("%s", forged)
    logger.opt(exception=ValueError(forged)).error("caught")
    for text in (console.getvalue(), log_file(tmp_path)):
        assert [line for line in text.splitlines() if line.startswith("2026-01-01")] == []
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
        assert r"x\n2026-01-01" in text
        own = [line for line in text.splitlines() if not line.startswith("    ")]
        assert all(LINE.fullmatch(line) for line in own)


def test_braces_and_tags_of_foreign_input_mean_nothing(console: Console, tmp_path: Path) -> None:
    set_up_logs(tmp_path)
    logger.info("{} <red>{{0.__class__}}</red>", "{time} {extra}")
    logging.getLogger("outside").info("{} {name} <level>")
    assert "{time} {extra} <red>{0.__class__}</red>" in console.getvalue()
    assert "{} {name} <level>" in console.getvalue()


def test_a_lone_surrogate_is_written_as_an_escape(console: Console, tmp_path: Path) -> None:
    set_up_logs(tmp_path)
    logger.info("a\ud800b")
    assert r"a\ud800b" in log_file(tmp_path)


TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJuYW1laWQiOiJoZW50ZXIyIn0.c2lnbmF0dXJlaHVudGVyMg"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2hunter2",
        "authorization: bearer hunter2.hunter2-_~+/=",
        "Authorization: Basic aHVudGVyMjpodW50ZXIy",
        f"token {TOKEN} refused",
        f"{{'Token': '{TOKEN}'}}",
        '{"email": "a@b", "password": "hunter2"}',
        '{"password": "with \\"hunter2\\" inside"}',
        "{'password': 'hunter2', 'x': 1}",
        "password=hunter2&x=1",
        "AZAION_DEVICE_PASSWORD=hunter2",
        "Password : hunter2",
        "uploader_access_secret: hunter2",
        "client_secret='hunter2'",
        "resource_secret = b'hunter2'",
        "key_fragment=hunter2",
        "key-fragment: hunter2",
        "input_value={'email': 'a', 'password': 'hunter2'}",
        "GET https://user:hunter2@host/path",
        "http://hunter2@host",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    cleaned = clean(text)
    assert "***" in cleaned
    assert "hunter2" not in cleaned
    assert TOKEN not in cleaned
    assert "aHVudGVyMj" not in cleaned


def test_what_is_no_secret_stays() -> None:
    for text in ("The token was refused.", "Unlock run 12 started", "http://host:8080/a@b", "password wrong"):
        assert clean(text) == text


def test_secrets_in_an_exception_are_masked(console: Console, tmp_path: Path) -> None:
    set_up_logs(tmp_path)

    def inner(password: str) -> None:
        raise ValueError(f"password='{password}'")

    try:
        inner("hunter" + "2")
    except ValueError:
        logger.exception("caught")
    text = log_file(tmp_path)
    assert "ValueError: password=***" in text
    assert "hunter2" not in text
    assert "hunter2" not in console.getvalue()


def test_messages_are_bounded() -> None:
    cleaned = clean("x" * 1_000_000)
    assert len(cleaned) < logs.MESSAGE_MAX_CHARS + 100
    assert cleaned.endswith("(983616 characters left out)")


@pytest.mark.parametrize("text", ["password" * 2000, "password=" * 1800, '"' * 16000, "eyJ" * 5000, "bearer " * 2300])
@pytest.mark.timeout(5)
def test_hostile_text_does_not_slow_the_masks(text: str) -> None:
    clean(text)


def record(text: str, day: datetime) -> object:
    class Message(str):
        __slots__ = ("record",)

    message = Message(text)
    message.record = {"time": day}  # type: ignore[attr-defined]
    return message


def test_a_file_a_day_and_old_ones_go(tmp_path: Path) -> None:
    today = datetime(2026, 3, 1, 23, 59, 59)
    for days in (1, logs.RETENTION_DAYS, logs.RETENTION_DAYS + 1, 400):
        (tmp_path / f"log_loader_{today - timedelta(days=days):%Y%m%d}.txt").write_text("old\n")
    (tmp_path / "log_loader_notes.txt").write_text("of somebody else\n")
    sink = DailyFile(tmp_path)
    sink.write(record("one\n", today))  # type: ignore[arg-type]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:2] == ["log_loader_20260130.txt", "log_loader_20260228.txt"]
    sink.write(record("two\n", today + timedelta(seconds=1)))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "log_loader_20260228.txt",
        "log_loader_20260301.txt",
        "log_loader_20260302.txt",
        "log_loader_notes.txt",
    ]
    assert (tmp_path / "log_loader_20260302.txt").read_text() == "two\n"
    assert (tmp_path / "log_loader_20260301.txt").stat().st_mode & 0o777 == 0o640


def test_a_restart_appends(tmp_path: Path) -> None:
    now = datetime(2026, 3, 1)
    DailyFile(tmp_path).write(record("one\n", now))  # type: ignore[arg-type]
    DailyFile(tmp_path).write(record("two\n", now))  # type: ignore[arg-type]
    assert (tmp_path / "log_loader_20260301.txt").read_text() == "one\ntwo\n"


def test_a_directory_that_cannot_be_made_is_said_once(console: Console, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    set_up_logs(tmp_path / "file" / "Logs")
    for number in range(3):
        logger.info("record {}", number)
    lines = console.getvalue().splitlines()
    assert [line for line in lines if line.startswith("No log file in")] == [
        f"No log file in {tmp_path / 'file' / 'Logs'}: [Errno 20] Not a directory: '{tmp_path / 'file' / 'Logs'}'. "
        "The console has all records."
    ]
    assert [f"record {number}" in console.getvalue() for number in range(3)] == [True] * 3


def test_a_full_disk_costs_the_file_only(console: Console, tmp_path: Path) -> None:
    """/dev/full answers each write with ENOSPC."""
    sink = DailyFile(tmp_path)
    now = datetime(2026, 3, 1)
    sink.write(record("fits\n", now))  # type: ignore[arg-type]
    os.dup2(os.open("/dev/full", os.O_WRONLY), sink._descriptor)
    for _ in range(3):
        sink.write(record("lost\n", now))  # type: ignore[arg-type]
    assert console.getvalue().count("No space left on device") == 1


def test_the_file_is_tried_again_later(console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [1000.0]
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    (tmp_path / "Logs").write_text("in the way")
    sink, now = DailyFile(tmp_path / "Logs"), datetime(2026, 3, 1)
    sink.write(record("lost\n", now))  # type: ignore[arg-type]
    (tmp_path / "Logs").unlink()
    sink.write(record("lost, too\n", now))  # type: ignore[arg-type]
    assert not (tmp_path / "Logs").exists()
    clock[0] += 61.0
    sink.write(record("kept\n", now))  # type: ignore[arg-type]
    assert (tmp_path / "Logs" / "log_loader_20260301.txt").read_text() == "kept\n"


def test_the_file_of_a_day_is_bounded(console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "FILE_MAX_BYTES", 8)
    sink, now = DailyFile(tmp_path), datetime(2026, 3, 1)
    for text in ("1234567\n", "more\n"):
        sink.write(record(text, now))  # type: ignore[arg-type]
    assert (tmp_path / "log_loader_20260301.txt").read_text() == "1234567\n"
    assert "has reached 8 bytes" in console.getvalue()


def test_a_link_in_place_of_the_file_is_not_followed(console: Console, tmp_path: Path) -> None:
    (tmp_path / "log_loader_20260301.txt").symlink_to(tmp_path / "elsewhere")
    DailyFile(tmp_path).write(record("no\n", datetime(2026, 3, 1)))  # type: ignore[arg-type]
    assert not (tmp_path / "elsewhere").exists()


def test_no_standard_error_is_no_fault(monkeypatch: pytest.MonkeyPatch, console: Console, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    (tmp_path / "file").write_text("")
    set_up_logs(tmp_path / "file")
    logger.info("to nobody")


def test_a_closed_standard_error_is_no_fault(monkeypatch: pytest.MonkeyPatch, console: Console, tmp_path: Path) -> None:
    sink = DailyFile(tmp_path / "log_loader_20260301.txt")
    (tmp_path / "log_loader_20260301.txt").write_text("")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.stderr.close()
    sink.write(record("to nobody\n", datetime(2026, 3, 1)))  # type: ignore[arg-type]


def access(method: str, path: str, status: int) -> None:
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", method, path, "1.1", status)


def test_successful_polls_are_not_logged(console: Console, tmp_path: Path) -> None:
    set_up_logs(tmp_path)
    for path in ("/health", "/status", "/unlock/status", "/unlock/progress?wait=30"):
        access("GET", path, 200)
    assert console.getvalue() == ""
    access("GET", "/health", 403)
    access("POST", "/unlock", 200)
    logging.getLogger("uvicorn.access").info("of another shape")
    assert len(console.getvalue().splitlines()) == 3


def test_levels_of_others(console: Console, tmp_path: Path) -> None:
    set_up_logs(tmp_path)
    logging.getLogger("urllib3").debug("not of interest")
    logging.getLogger("outside").log(35, "between two levels")
    assert "not of interest" not in console.getvalue()
    assert "Level 35 outside: between two levels" in console.getvalue()


def test_warnings_are_records_where_they_are_not_errors(console: Console, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        set_up_logs(tmp_path)
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert "DeprecationWarning: old ways" in console.getvalue()


def test_importing_and_setting_up_is_cheap(tmp_path: Path) -> None:
    """Half of what importing asyncio and logging costs would be a regression; the figure is generous on purpose."""
    code = (
        "import asyncio, logging, time, pathlib, sys\n"
        "start = time.perf_counter()\n"
        "from azaion_loader.logs import set_up_logs\n"
        f"set_up_logs(pathlib.Path({str(tmp_path)!r}))\n"
        "print(time.perf_counter() - start)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    seconds = min(
        float(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
        for _ in range(3)
    )
    assert seconds < 0.25
