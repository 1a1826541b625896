"""Progress as plain lines on standard error, one every few seconds, for logs that nobody scrolls back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

EVERY_S = 5.0


class Lines:
    """Implements ``premoe_runtime.packs.progress.Progress``; also counts other things than bytes.

    ``unit`` names what is counted; bytes are shown in MiB.
    """

    def __init__(
        self,
        what: str,
        *,
        unit: str = "bytes",
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._unit = unit
        self._out = out or sys.stderr
        self._clock = clock
        self._started = self._said = clock()
        self._stage = ""
        self._done = 0.0
        self._total = 0

    def total(self, num_bytes: int) -> None:
        self._total = num_bytes

    def stage(self, what: str) -> None:
        self._stage = what
        self._say_when_due()

    def advance(self, num_bytes: float) -> None:
        self._done += num_bytes
        self._say_when_due()

    def _say_when_due(self) -> None:
        now = self._clock()
        if now - self._said >= EVERY_S:
            self._said = now
            print(self._line(now), file=self._out, flush=True)

    def _line(self, now: float) -> str:
        rate = self._done / max(now - self._started, 1e-9)
        stage = f" {self._stage}" if self._stage else ""
        if self._unit == "bytes":
            return f"{self._what}{stage}: {_mib(self._done)} of {_mib(self._total)} MiB, {_mib(rate)} MiB/s"
        return f"{self._what}{stage}: {self._done:.0f} of {self._total} {self._unit}, {rate:.1f} a second"


def _mib(count: float) -> str:
    return f"{count / 2**20:.0f}"
