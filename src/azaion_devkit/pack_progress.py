"""A bar on a terminal for the long steps of azaion-pack; silent elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


class PackProgress:
    """Shows one step at a time, on standard error; a context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None, visible=False)

    def step(self, words: str, total_bytes: int | None) -> None:
        """Begin a step; `total_bytes` is None where nobody knows."""
        self._bar.reset(self._task, description=words, total=total_bytes, visible=True)

    def add(self, count: int) -> None:
        """Count bytes of the step."""
        self._bar.advance(self._task, count)

    def __enter__(self) -> Self:
        """Begin to show."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
