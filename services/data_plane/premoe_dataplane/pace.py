"""A bound on bytes a second, shared by all who keep to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TICK_S = 0.1


class Pace:
    """``rate``: bytes a second, None for no bound. Safe from several threads."""

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._lock = threading.Lock()
        self._free_at = 0.0
        """When all that was taken has had its time."""

    def delay(self, num_bytes: int) -> float:
        """Take ``num_bytes``; returns the seconds to wait before the next are taken."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + num_bytes / self._rate
            return self._free_at - now

    def keep(self, num_bytes: int, hurry: Callable[[], bool]) -> None:
        """Take ``num_bytes`` and wait, or until ``hurry()``."""
        until = self._clock() + self.delay(num_bytes)
        while (left := until - self._clock()) > 0 and not hurry():
            time.sleep(min(left, TICK_S))
