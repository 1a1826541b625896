"""A queue of keys: a key waits once however often it is added, is worked on by one task at a time, and is never lost.

A key added while it is worked on is worked on again afterwards. Failures are tried again after 0.2 s, doubling.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_RETRY_S = 0.2


class WorkQueue(Generic[Key]):
    """For one event loop. ``clock`` is in seconds and only needs to grow."""

    def __init__(self, *, retry_max_s: float, clock: Callable[[], float] | None = None) -> None:
        self._retry_max_s = retry_max_s
        self._clock = clock
        self._ready: OrderedDict[Key, None] = OrderedDict()
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._due: dict[Key, float] = {}
        self._timers: list[tuple[float, int, Key]] = []
        self._count = 0
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait for a task now; those due later are not counted."""
        return len(self._ready) + len(self._again)

    def add(self, key: Key) -> None:
        """Have the key worked on, now or when it is free. Cuts a wait after a failure short."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        else:
            self._ready[key] = None
        self._wake.set()

    def add_later(self, key: Key, delay_s: float) -> None:
        """Have the key worked on in ``delay_s`` seconds, unless that happens sooner anyway."""
        if key in self._ready or key in self._again:
            return
        due = self._now() + delay_s
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._count += 1
            heapq.heappush(self._timers, (due, self._count, key))
            self._wake.set()

    async def get(self) -> Key:
        """The next key, which then counts as worked on until ``done`` or ``failed``."""
        while True:
            wait_s = self._release_due()
            if self._ready:
                key, _ = self._ready.popitem(last=False)
                self._working.add(key)
                return key
            self._wake.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def done(self, key: Key, *, again_after_s: float | None = None) -> None:
        """The work on the key went well."""
        self._failures.pop(key, None)
        self._release(key)
        if again_after_s is not None:
            self.add_later(key, again_after_s)

    def failed(self, key: Key) -> float:
        """The work on the key failed: it comes again. Returns after how many seconds, at the latest."""
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        delay_s = min(FIRST_RETRY_S * 2.0 ** min(failures - 1, 30), self._retry_max_s)
        self._release(key)
        self.add_later(key, delay_s)
        return delay_s

    def check_integrity(self) -> None:
        """Raise AssertionError when a key is in two places at once or waits for nothing."""
        assert not self._again - self._working, "a key waits for work that nobody does"
        assert not self._working & self._ready.keys(), "a key is worked on and ready"
        assert not self._due.keys() - {key for _, _, key in self._timers}, "a key is due without a timer"

    def _release(self, key: Key) -> None:
        self._working.remove(key)
        if key in self._again:
            self._again.remove(key)
            self._ready[key] = None
            self._wake.set()

    def _release_due(self) -> float | None:
        """Make keys ready whose time has come. Returns the seconds until the next one's."""
        while self._timers:
            due, _, key = self._timers[0]
            if self._due.get(key) != due:  # cut short, or replaced by an earlier one
                heapq.heappop(self._timers)
                continue
            if due > self._now():
                return due - self._now()
            heapq.heappop(self._timers)
            self.add(key)
        return None

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()
