"""How far a method is, on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from premoe_local.console import Progress, note, progress


class ConsoleReport:
    """A bar for every stage, with the time left; a ``premoe_runtime.compress.method.Report``."""

    def __init__(self) -> None:
        self._bars = ExitStack()
        self._bar: Progress | None = None

    def stage(self, what: str, total: float) -> None:
        self.close()
        self._bar = self._bars.enter_context(progress(what, total=total))

    def advance(self, amount: float) -> None:
        if self._bar is not None:
            self._bar.advance(amount)

    def note(self, text: str) -> None:
        note(f"note: {text}")

    def close(self) -> None:
        """The last stage is over."""
        self._bars.close()
        self._bar = None


def records(facts: Mapping[str, object]) -> dict[str, list[Mapping[str, Any]]]:
    """What a method found out that is a table: its facts that are lists of equal records."""
    return {
        name: value
        for name, value in facts.items()
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value)
    }
