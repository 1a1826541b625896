"""One load per key, however many ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from premoe_runtime.formats.errors import PremoeError

K = TypeVar("K")
V = TypeVar("V")

Load = Callable[[Sequence[K]], Awaitable[Mapping[K, V | PremoeError]]]


class _Flight(Generic[K, V]):
    """A load under way and how many wait for it."""

    def __init__(self, task: asyncio.Task[Mapping[K, V | PremoeError]]) -> None:
        self.task = task
        self.waiters = 0


class SingleFlight(Generic[K, V]):
    """Joins callers that want the same key to the load already under way.

    A load goes on while anybody waits for it and is cancelled when the last one leaves. Errors are per key: who did
    not ask for the broken one does not see it.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[K, V]] = {}

    @property
    def under_way(self) -> int:
        """Keys being loaded now."""
        return len(self._flights)

    async def get(self, keys: Sequence[K], load: Load[K, V]) -> dict[K, V]:
        """The value of every key; ``load`` is called once, with the keys that nobody loads yet.

        Raises the PremoeError of the first key, in order, that has one.
        """
        wanted = list(dict.fromkeys(keys))
        joined = {key: self._flights[key] for key in wanted if key in self._flights}
        new = [key for key in wanted if key not in joined]
        if new:
            joined.update(dict.fromkeys(new, self._start(new, load)))
        flights = list(dict.fromkeys(joined.values()))
        for flight in flights:
            flight.waiters += 1
        try:
            for flight in flights:
                await asyncio.shield(flight.task)
        finally:
            for flight in flights:
                self._leave(flight)
        found: dict[K, V] = {}
        for key in wanted:
            value = joined[key].task.result()[key]
            if isinstance(value, PremoeError):
                raise value
            found[key] = value
        return found

    def _start(self, keys: Sequence[K], load: Load[K, V]) -> _Flight[K, V]:
        async def run() -> Mapping[K, V | PremoeError]:
            return await load(keys)

        flight = _Flight(asyncio.create_task(run()))
        self._flights.update(dict.fromkeys(keys, flight))
        flight.task.add_done_callback(lambda _: self._land(flight))
        return flight

    def _leave(self, flight: _Flight[K, V]) -> None:
        flight.waiters -= 1
        if not flight.waiters and not flight.task.done():
            # Taken off first: who comes now must not join a load that is being cancelled.
            self._land(flight)
            flight.task.cancel()

    def _land(self, flight: _Flight[K, V]) -> None:
        for key in [key for key, other in self._flights.items() if other is flight]:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # retrieved, so that an abandoned failure is not reported as never seen
