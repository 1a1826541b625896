"""How commands talk to people and to programs.

Results go to stdout (tables, or one JSON document with `--json`); progress, notes and errors go to stderr, so that
`premoe … --json | jq` always works. Knows no command.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any, Protocol

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from premoe_runtime.formats.errors import PremoeError

json_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)
"""Adds `--json`; the command receives `as_json: bool`."""


class CommandError(click.ClickException):
    """One `error: …` line on stderr, then the given exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        # click reads it as an instance attribute, but types it as a class variable.
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file or sys.stderr)


def from_exception(error: Exception) -> CommandError | None:
    """The line and exit code for an error that a person can do something about; None for a bug."""
    if isinstance(error, PremoeError):
        return CommandError(str(error), error.exit_code)
    if isinstance(error, OSError) and error.strerror and not isinstance(error, BrokenPipeError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return CommandError(where + error.strerror, 7 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 2)
    return None


def print_json(value: object) -> None:
    """Print one JSON document on stdout. Floats keep their full precision; NaN is refused with ValueError."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout; columns whose every value is a number stand to the right.

    A column without any value is left out. On a terminal too narrow for its longest words, every row becomes a block
    of lines: no word is cut.
    """
    values = [["" if value is None else str(value) for value in row] for row in rows]
    used = [index for index in range(len(columns)) if not values or any(row[index] for row in values)]
    columns, values = [columns[index] for index in used], [[row[index] for index in used] for row in values]
    console = Console(file=sys.stdout, highlight=False, markup=False)
    if not console.is_terminal:
        # A pipe has no width: rich would fold at 80 columns.
        console = Console(file=sys.stdout, highlight=False, markup=False, width=200)
    numeric = [bool(values) and all(_is_number(row[index]) for row in values) for index in range(len(columns))]
    # A number stays beside its unit; other cells may be wrapped between words.
    least = [
        max(len(part) for part in (*name.split(" "), *(cells if one else " ".join(cells).split(" "))))
        for one, name, *cells in zip(numeric, columns, *values, strict=True)
    ]
    if console.is_terminal and sum(least) + 3 * len(least) + 1 > console.width:
        _print_blocks(console, title, columns, values)
        return
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for name, one, width in zip(columns, numeric, least, strict=True):
        table.add_column(name, justify="right" if one else "left", overflow="fold", min_width=width)
    for row in values:
        table.add_row(*row)
    console.print(table)


def _print_blocks(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    console.print(title, style="bold")
    margin = max(len(name) for name in columns)
    for row in rows:
        for name, value in zip(columns, row, strict=True):
            console.print(f"  {name:<{margin}}  {value}", soft_wrap=True)
        console.print()


def human_bytes(count: float) -> str:
    """``1536`` → ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def date(seconds: float) -> str:
    """Seconds since 1970 → ``"2026-11-28 15:37 UTC"``."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def parse_bytes(text: str) -> int:
    """``"24GiB"``, ``"1.5 GB"``, ``"512"`` → bytes. Raises click.BadParameter."""
    units = {"": 1, "b": 1}
    for power, letter in enumerate("kmgt", start=1):
        units |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text.strip()[len(number) :].lower()
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a size such as 24GiB or 512MB") from None


class Number(click.FloatRange):
    """A float in a range; "nan" lies in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


class Text(click.types.StringParamType):
    """Text that can be sent: a shell hands over any bytes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.fail(f"is not UTF-8 at character {error.start + 1}", param, ctx)
        return text


def interrupt_on_sigterm(saying: str = "") -> None:
    """Let SIGTERM stop a command as Ctrl-C does: KeyboardInterrupt, so that everything is cleaned up.

    ``saying`` is said at once, for cleaning up may take a while.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if saying:
            # Not through click: the signal may come in the middle of a print, whose lock is taken.
            os.write(2, f"{saying}\n".encode())
        raise KeyboardInterrupt

    # SIGINT too: a shell starts background jobs with it ignored, and Python then leaves it so.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)


class Progress(Protocol):
    """A running progress bar."""

    def advance(self, amount: float = 1) -> None: ...

    def update(
        self, *, completed: float | None = None, total: float | None = None, description: str | None = None
    ) -> None: ...


class _Bar:
    def __init__(self, progress: RichProgress, description: str, total: float | None) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total)

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task, amount)

    def update(
        self, *, completed: float | None = None, total: float | None = None, description: str | None = None
    ) -> None:
        self._progress.update(self._task, completed=completed, total=total, description=description)


@contextmanager
def progress(
    description: str, total: float | None = None, *, unit: str = "", quiet: bool = False, counts: bool = True
) -> Iterator[Progress]:
    """A bar on stderr while the block runs; it disappears at the end, and shows nothing when stderr is no terminal.

    ``unit="bytes"`` adds a transfer rate; ``total=None`` shows a spinner; ``counts=False`` leaves out "3/8", for totals
    that count nothing.
    """
    console = Console(stderr=True)
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
    if unit == "bytes" or counts:
        columns += [TransferSpeedColumn() if unit == "bytes" else MofNCompleteColumn()]
    columns += [TimeElapsedColumn(), TextColumn("elapsed")]
    if total is not None:
        columns += [TimeRemainingColumn(), TextColumn("left")]
    hidden = quiet or not console.is_terminal
    with RichProgress(*columns, console=console, transient=True, disable=hidden) as bars:
        yield _Bar(bars, description, total)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").rstrip("%×xBKMGTi ") or "0")
    except ValueError:
        return text in ("-", "–")
    return True
