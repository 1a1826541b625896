"""A bar for commands that read and write files of models."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress


class Bar:
    """Bytes done, rate and time left on stderr; silent when stderr is no terminal."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<36}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self.rich = RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self.rich.add_task("reading headers", total=None)

    def total(self, num_bytes: int) -> None:
        self.rich.update(self._task, total=num_bytes)

    def stage(self, what: str) -> None:
        self.rich.update(self._task, description=what)

    def advance(self, num_bytes: int) -> None:
        self.rich.advance(self._task, num_bytes)
