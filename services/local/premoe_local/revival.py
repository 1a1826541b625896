"""A dead worker of several is started again, a little later each time that it does not last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from premoe_runtime.formats.errors import PremoeError

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
STEADY_S = 60.0
"""A worker that lived so long starts with the first delay anew."""


class Restartable(Protocol):
    """What is needed of a child process."""

    @property
    def name(self) -> str: ...

    def check(self) -> None: ...

    def start_again(self, *arguments: str) -> None: ...


class Revival:
    """Looks after one child; call ``tend`` often. ``arguments``: what the new process gets beside the old one's."""

    def __init__(
        self,
        child: Restartable,
        arguments: tuple[str, ...],
        log: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.child = child
        self._arguments = arguments
        self._log = log
        self._clock = clock
        self._delay = FIRST_DELAY_S
        self._started = clock()
        self._due: float | None = None

    def tend(self) -> None:
        """Start the child again when it has exited and its time has come."""
        now = self._clock()
        if self._due is not None:
            if now >= self._due:
                self.child.start_again(*self._arguments)
                self._started, self._due = now, None
            return
        try:
            self.child.check()
        except PremoeError as error:
            if now - self._started >= STEADY_S:
                self._delay = FIRST_DELAY_S
            self._log(self.child.name, f"{error}; starting it again in {self._delay:.0f} s")
            self._due = now + self._delay
            self._delay = min(2 * self._delay, LONGEST_DELAY_S)
