"""Who is let in: the one judge of room in a worker's queue."""

from __future__ import annotations

import threading

from premoe_runtime.formats.errors import Exhausted, Unavailable


class Admission:
    """Counts requests from their arrival to their end; at most ``most_waiting`` wait, whatever they wait for.

    Safe from any thread. The serving loop says what runs, and when no more may come.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._inside = 0
        self.running = 0
        """Sequences in the engine's last step."""
        self.draining = False

    @property
    def waiting(self) -> int:
        return max(0, self._inside - self.running)

    def check_open(self) -> None:
        """Raises Unavailable (DRAINING) once no more may come."""
        if self.draining:
            raise Unavailable("the worker takes no new requests: it is stopping; use another one", reason="DRAINING")

    def check(self) -> None:
        """Whether a request would be let in now. Raises Unavailable (DRAINING) or Exhausted (QUEUE_FULL)."""
        self.check_open()
        if self.waiting >= self._most_waiting:
            raise Exhausted(f"{self._most_waiting} requests are waiting already; try again later", reason="QUEUE_FULL")

    def enter(self) -> Place:
        """A request has arrived. Raises as ``check`` does."""
        with self._lock:
            self.check()
            self._inside += 1
        return Place(self)

    def left(self) -> None:
        with self._lock:
            self._inside -= 1


class Place:
    """A request's place in the queue and in the batch, until whoever holds it leaves it."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def leave(self) -> None:
        """Any number of times."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.left()
