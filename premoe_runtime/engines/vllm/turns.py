"""Whose turn it is to use vLLM in this process: a step's, or that of one expert which is packed."""

from __future__ import annotations

import threading


class Turns:
    """A lock that goes out in the order in which it was asked for: a loop that asks again at once starves nobody.

    Packing sets what all of vLLM in a process shares (default dtype, configuration), so it never runs beside a step.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            ticket, self._asked = self._asked, self._asked + 1
            self._changed.wait_for(lambda: self._serving == ticket)

    def __exit__(self, *raised: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()
