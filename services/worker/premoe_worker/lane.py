"""Lanes keep kinds of work apart: each has threads of its own and a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from premoe_runtime.formats.errors import Exhausted

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """Threads for one kind of work, and a bounded queue before them. Use from one event loop.

    Other kinds never wait behind it. A caller that leaves the queue leaves nothing behind there.
    """

    def __init__(self, what: str, *, threads: int, waiting: int, things: str = "prompts") -> None:
        """``what`` is done to ``things``: both are told to who has to wait."""
        self._what, self._things, self._most_waiting = what, things, waiting
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"premoe-{what}")
        self._free = asyncio.Semaphore(threads)
        self._waiting = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function``'s result from a thread of this lane. Raises Exhausted (QUEUE_FULL) where no more may wait."""
        if self._free.locked() and self._waiting >= self._most_waiting:
            raise Exhausted(
                f"{self._most_waiting} {self._things} are waiting to be {self._what} already; try again later",
                reason="QUEUE_FULL",
            )
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        work = partial(copy_context().run, partial(function, *args, **kwargs))
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        future.add_done_callback(self._freed)
        # A caller that leaves does not free the thread: the work goes on to its end.
        return await asyncio.shield(future)

    def close(self) -> None:
        """Take no more work. What runs goes on to its end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _freed(self, future: asyncio.Future[T]) -> None:
        self._free.release()
        if not future.cancelled():
            future.exception()  # marked as seen, also where the caller has left
