"""How far a method is, on stderr."""

from __future__ import annotations

from contextlib import ExitStack

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
