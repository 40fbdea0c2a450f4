"""The log: loguru to standard error and to one file a day, for our own records and for those of the standard library.

No record can forge another one: control characters of foreign input are written as escapes, and each line of a
traceback is indented. Secrets do not belong in a message; what slips in all the same is masked here. The file is a
convenience: a directory that can't be made or is full costs the file, never the service.
"""

import contextlib
import logging
import os
import re
import sys
import time
import traceback
import warnings
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from loguru import Message, Record

RETENTION_DAYS = 30
FILE_MAX_BYTES = 64 << 20
MESSAGE_MAX_CHARS = 16_384
_RETRY_AFTER_S = 60.0

_FORMAT = "{time:YYYY-MM-DD HH:mm:ss.SSS} <level>{level: <8}</level> {name}: <level>{message}</level>{extra[trace]}"
_FILE_NAME = re.compile(r"log_loader_(\d{4})(\d{2})(\d{2})\.txt")

# C0 and C1 controls, line and paragraph separators, marks that turn the direction of text, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+"), r"\1 ***"),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w.-]+"), "***"),
    (re.compile(r"://[^/\s@\"']+@"), "://***@"),
    (
        re.compile(
            r"(?i)((?:password|passwd|secret|token|authorization|credential|key[_-]?fragment)[\w-]{0,40}[\"']?\s{0,3}[:=]\s{0,3})"
            r"(?:[bB]?\"(?:[^\"\\]|\\.)*\"|[bB]?'(?:[^'\\]|\\.)*'|[^\s,;&})\]]+)"
        ),
        r"\1***",
    ),
)
# Polled every few seconds: their successful answers would be most of the log.
_POLLED_PATHS = frozenset({"/health", "/status", "/unlock/status", "/unlock/progress", "/metrics"})


def set_up_logs(log_dir: Path) -> None:
    """Send every record to standard error and to `log_dir/log_loader_<YYYYMMDD>.txt`; replaces an earlier set-up."""
    logger.remove()
    logger.configure(patcher=_make_safe)
    if sys.stderr is not None:  # a daemon may run without one
        _add(sys.stderr, colorize=sys.stderr.isatty())
    _add(DailyFile(log_dir).write, colorize=False)
    _take_over_standard_logging()


def _add(sink: "TextIO | Callable[[Message], None]", *, colorize: bool) -> None:
    # `diagnose` would print the values of variables, passwords with them.
    logger.add(sink, level="INFO", format=_format, colorize=colorize, diagnose=False, backtrace=False)


def clean(text: str) -> str:
    """Return `text` on one line, bounded, with control characters escaped and what looks like a secret masked."""
    if len(text) > MESSAGE_MAX_CHARS:
        text = f"{text[:MESSAGE_MAX_CHARS]}… ({len(text) - MESSAGE_MAX_CHARS} characters left out)"
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


class DailyFile:
    """Appends records to the file of their day and removes those older than RETENTION_DAYS.

    Writes are single appends without a buffer, so that several processes can share a directory and a full disk
    leaves nothing behind that a later close would fail on.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = -1
        self._day = ""
        self._size_bytes = 0
        self._silent_until = 0.0
        self._complained_on = ""

    def write(self, message: "Message") -> None:
        """Append one record; a failure is said once a day on standard error, and the file is tried again later."""
        if time.monotonic() < self._silent_until:
            return
        day = message.record["time"].strftime("%Y%m%d")
        data = str(message).encode("utf-8", "backslashreplace")
        try:
            if day != self._day:
                self._open(day)
            self._append(data)
        except OSError as err:
            self._give_up(day, err)

    def _open(self, day: str) -> None:
        self._close()
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"log_loader_{day}.txt"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o640)
        self._size_bytes = os.fstat(self._descriptor).st_size
        self._day = day
        self._remove_old(day)

    def _append(self, data: bytes) -> None:
        if self._size_bytes + len(data) > FILE_MAX_BYTES:
            raise OSError(f"the file of the day has reached {FILE_MAX_BYTES} bytes")
        written = os.write(self._descriptor, data)
        self._size_bytes += written
        if written < len(data):
            raise OSError("the disk is full")

    def _remove_old(self, day: str) -> None:
        oldest = date(int(day[:4]), int(day[4:6]), int(day[6:])) - timedelta(days=RETENTION_DAYS)
        for path in self._directory.iterdir():
            match = _FILE_NAME.fullmatch(path.name)
            if match and "".join(match.groups()) < oldest.strftime("%Y%m%d"):
                with contextlib.suppress(OSError):  # of another user, or gone already: no matter for this process
                    path.unlink()

    def _give_up(self, day: str, err: OSError) -> None:
        self._close()
        self._silent_until = time.monotonic() + _RETRY_AFTER_S
        if self._complained_on != day and sys.stderr is not None:
            self._complained_on = day
            # Straight to the stream: a sink must not log. A closed stream has nobody to tell.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"No log file in {self._directory}: {clean(str(err))}. The console has all records.\n")

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._day = -1, ""


class _ToLoguru(logging.Handler):
    """Hands records of the standard library's logging to loguru, under the name of their own logger."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "uvicorn.access" and _is_routine(record.args):
            return

        def rename(target: "Record") -> None:
            target["name"] = record.name

        level = record.levelname if record.levelno in _LEVELS else max(record.levelno, 0)
        logger.patch(rename).opt(exception=record.exc_info).log(level, record.getMessage())


_LEVELS = frozenset({logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL})


def _is_routine(args: object) -> bool:
    """Whether uvicorn's access record (client, method, path, HTTP version, status) tells of a successful poll."""
    if not isinstance(args, tuple) or len(args) != 5:
        return False
    return args[1] == "GET" and str(args[2]).partition("?")[0] in _POLLED_PATHS and args[4] == 200


def _take_over_standard_logging() -> None:
    """One root handler; uvicorn's own ones go, whoever configured them."""
    logging.root.handlers = [_ToLoguru()]
    logging.root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        known = logging.getLogger(name)
        known.handlers = []
        known.propagate = True
    if not warnings.filters or warnings.filters[0][0] != "error":
        logging.captureWarnings(True)


def _make_safe(record: "Record") -> None:
    """Clean the message, and turn an exception into indented text of our own: loguru's would hold raw input."""
    record["message"] = clean(record["message"])
    trace = ""
    if (caught := record["exception"]) is not None:
        lines = "".join(traceback.format_exception(caught.type, caught.value, caught.traceback)).splitlines()
        trace = "".join(f"\n    {clean(line)}" for line in lines)
        record["exception"] = None
    record["extra"]["trace"] = trace


def _format(_record: "Record") -> str:
    # A function keeps loguru from adding its own rendering of the exception.
    return _FORMAT + "\n"
