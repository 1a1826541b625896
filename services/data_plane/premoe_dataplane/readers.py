"""Threads that read: two that get on, whatever else waits for a slow source.

A reader that was told of no piece for a quarter of a second does not count, so another takes its place. How many may
wait like that is bounded by whoever hands out the jobs. Threads live as long as there is work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

ACTIVE = 2
STALL_S = 0.25

Job = Callable[[], None]


class _Reader(threading.Thread):
    """``beat_at``: when it last got on, monotonic."""

    def __init__(self, run: Callable[[_Reader], None]) -> None:
        super().__init__(target=lambda: run(self), name="premoe-fetch-read", daemon=True)
        self.beat_at = time.monotonic()


class Readers:
    """``take`` gives the next job or None; it is called with ``lock`` held, which is the owner's."""

    def __init__(self, lock: threading.Condition, take: Callable[[], Job | None], active: int = ACTIVE) -> None:
        self._lock, self._take, self._active = lock, take, active
        self._busy: set[_Reader] = set()

    def wake(self) -> None:
        """Begin what there is to do. With the lock held, when there are new jobs and now and then while there are."""
        while self._getting_on() < self._active and (job := self._take()) is not None:
            reader = _Reader(lambda me, job=job: self._run(me, job))  # type: ignore[misc]
            self._busy.add(reader)
            reader.start()

    def beat(self) -> None:
        """The calling reader gets on."""
        reader = threading.current_thread()
        if isinstance(reader, _Reader):
            reader.beat_at = time.monotonic()

    def _run(self, me: _Reader, job: Job) -> None:
        next_job: Job | None = job
        while next_job is not None:
            next_job()
            with self._lock:
                self._busy.discard(me)
                next_job = self._take() if self._getting_on() < self._active else None
                if next_job is not None:
                    me.beat_at = time.monotonic()
                    self._busy.add(me)

    def _getting_on(self) -> int:
        now = time.monotonic()
        return sum(now - reader.beat_at < STALL_S for reader in self._busy)
