"""Sources that failed are left alone for a while: longer each time, until one works again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from premoe_dataplane.plan import Scheme, Source

REST_S = 2.0
LONGEST_S = 30.0


class Place(NamedTuple):
    """Who is asked: the server of a URL, or all of a scheme."""

    scheme: Scheme
    server: str


def place_of(source: Source) -> Place:
    return Place(source.scheme, urlsplit(source.url).netloc if source.scheme == "http" else "")


@dataclass(slots=True)
class _State:
    failures: int = 0
    until: float = 0.0


class Breakers:
    """One per place. Safe from several threads."""

    def __init__(
        self,
        rest_s: float = REST_S,
        longest_s: float = LONGEST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rest_s, self._longest_s, self._clock = rest_s, longest_s, clock
        self._lock = threading.Lock()
        self._states: dict[Place, _State] = {}

    def resting(self, place: Place) -> bool:
        """Whether it is better not asked now."""
        with self._lock:
            state = self._states.get(place)
            return state is not None and self._clock() < state.until

    def failed(self, place: Place) -> bool:
        """It has failed. Returns whether that is news."""
        with self._lock:
            state = self._states.setdefault(place, _State())
            state.failures += 1
            state.until = self._clock() + min(self._rest_s * 2.0 ** (state.failures - 1), self._longest_s)
            return state.failures == 1

    def worked(self, place: Place) -> None:
        with self._lock:
            self._states.pop(place, None)

    def open(self) -> list[Place]:
        """Those that rest now."""
        with self._lock:
            return [place for place, state in self._states.items() if self._clock() < state.until]
