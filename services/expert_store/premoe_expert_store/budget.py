"""A bound on bytes held in memory at the same time."""

from __future__ import annotations

import asyncio
from collections import deque


class ByteBudget:
    """Bytes that may be held at once; takers wait in turn. A request larger than everything takes everything."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._free = capacity_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free_bytes(self) -> int:
        return self._free

    async def take(self, num_bytes: int) -> int:
        """Wait for room; returns the bytes taken, to be given back."""
        wanted = min(num_bytes, self._capacity)
        if not self._waiting and wanted <= self._free:
            self._free -= wanted
            return wanted
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (wanted, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(wanted)  # room and cancellation came in the same step
            else:
                self._waiting.remove(entry)
                self._admit()
            raise
        return wanted

    def give(self, num_bytes: int) -> None:
        """Give bytes back."""
        self._free += num_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            wanted, turn = self._waiting.popleft()
            self._free -= wanted
            turn.set_result(None)
