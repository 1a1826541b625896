"""How long to insist on a peer that does not deliver."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from premoe_dataplane.fetcher import WRONG
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.watched import POLL_S
from premoe_servicekit.errors import retry_after

from premoe_runtime.formats.errors import PremoeError, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds of waiting: ``idle_s`` seconds for one message, ``tries`` in a row that brought nothing.

    Few tries by default, for another replica: whoever waits for the result may have more patience, and better use for
    the thread meanwhile.
    Between two tries lies a random part of ``pause_s``, of twice that, …, up to ``longest_pause_s``, so that the
    workers of one store do not come back all at once. Bytes that came wrong from everywhere may have been hurt on their
    way. A peer that names its own pause gets it, within that bound.
    """

    idle_s: float = 10.0
    tries: int = 2
    pause_s: float = 0.5
    longest_pause_s: float = 5.0

    def pause(self, error: PremoeError, failures: int, draw: float) -> float | None:
        """Seconds until the next try after ``failures`` fruitless ones, or None to give up; ``draw`` in 0 … 1."""
        named = retry_after(error)
        passes = isinstance(error, Unavailable) or named is not None or error.reason == WRONG
        if failures >= self.tries or not passes:
            return None
        own = draw * self.pause_s * 2.0 ** (failures - 1)
        return min(max(own, named or 0.0), self.longest_pause_s)

    def insist(
        self, attempt: Callable[[], T], stopped: Callable[[], bool], progress: Callable[[], int] = lambda: 0
    ) -> T:
        """What ``attempt`` returns in the end; tries that increase ``progress()`` are not held against it.

        A new call goes to the channel's next address, so a peer with replicas gets another one each time. Raises the
        last error, and Stopped.
        """
        failures = 0
        while True:
            before = progress()
            try:
                return attempt()
            except PremoeError as error:
                failures = failures + 1 if progress() == before else 1
                pause = self.pause(error, failures, random.random())
                if pause is None:
                    raise
                log.warning("%s; trying again in %.1f s", error, pause)
            _rest(pause, stopped)


def _rest(seconds: float, stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stopped():
            raise Stopped
        time.sleep(min(left, POLL_S))
