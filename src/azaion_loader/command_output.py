"""How commands speak: sentences for people, one JSON object for programs, and an exit code for both.

Exit codes: 0 done, 1 failed, 2 wrong usage or setting, 3 no loader answers, 4 refused (account, token, hardware),
5 not found, 6 the Resource API or the object store failed, 7 the device failed (disk, engine, archive), 8 not done in
the time given.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from azaion_loader.command_client import CommandError

FAILED = 1
_EXIT_CODES: Mapping[int, tuple[str, ...]] = {
    2: ("usage", "invalid_request", "invalid_name", "too_large", "cross_site", "method_not_allowed"),
    3: ("service_unreachable", "broken_off", "not_a_loader"),
    4: (
        "invalid_credentials",
        "not_authenticated",
        "unauthorized",
        "forbidden",
        "hardware_mismatch",
        "account_locked",
        "rate_limited",
        "host_not_allowed",
    ),
    5: ("resource_not_found", "archive_not_found", "not_found"),
    6: ("upstream_error", "upstream_unavailable", "upstream_timeout", "integrity_error"),
    7: (
        "disk_full",
        "archive_invalid",
        "archive_incomplete",
        "archive_untrusted",
        "archive_too_old",
        "wrong_key",
        "wrong_platform",
        "docker_unavailable",
        "docker_failed",
        "docker_stalled",
        "images_missing",
        "interrupted",
    ),
    8: ("not_in_time",),
}


def exit_code(code: str) -> int:
    """Return the exit code for the stable word of a failure."""
    return next((number for number, words in _EXIT_CODES.items() if code in words), FAILED)


class Output:
    """Where a command's words go: sentences and bars, or with `as_json` one object at the end."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def result(self, found: Mapping[str, Any], text: str) -> None:
        """Say how the command ended: `found` for programs, `text` for people."""
        if self.as_json:
            sys.stdout.write(json.dumps(found) + "\n")
        else:
            self._console.print(text, markup=False)

    def styled(self, text: str, style: str) -> None:
        """Say a line to people only."""
        if not self.as_json:
            self._console.print(text, style=style, markup=False)

    def failure(self, error: CommandError) -> int:
        """Say why the command failed, and return the exit code."""
        if self.as_json:
            sys.stdout.write(json.dumps({"code": error.code, "detail": error.message}) + "\n")
        else:
            self._errors.print(f"azaion-loader: {error.message} ({error.code})", markup=False)
        return exit_code(error.code)

    @contextlib.contextmanager
    def transfer(self, words: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar on a terminal; the function that it gives takes the bytes done and their total."""
        with self._bar() as bar:
            task = bar.add_task(words, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextlib.contextmanager
    def run(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Show an unlock run; the function that it gives takes the figures of `/unlock/progress`."""
        with self._bar() as bar:
            task: TaskID = bar.add_task("unlock", total=None)

            def show(figures: Mapping[str, Any]) -> None:
                images = (
                    f", {figures['images_done']} of {figures['images_total']} images" if figures["images_total"] else ""
                )
                words = f"{figures['percent']:5.1f} %  {figures['stage']}{images}"
                bar.update(
                    task, description=words, completed=figures["bytes_done"], total=figures["bytes_total"] or None
                )

            yield show

    def _bar(self) -> Progress:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        quiet = self.as_json or not self._errors.is_terminal
        return Progress(*columns, console=self._errors, disable=quiet, transient=True)
