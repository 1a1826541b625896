"""Room for blobs: where they lie already, a draft of the node cache, or memory within a bound."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from premoe_expert_store.budget import ByteBudget
from premoe_expert_store.cache import Draft, NodeCache, Opened
from premoe_expert_store.cache.whole import digest_of, is_right
from premoe_expert_store.filling.arrival import Arrival
from premoe_expert_store.filling.filler import finished
from premoe_expert_store.filling.room import Room
from premoe_runtime.formats.errors import Exhausted

T = TypeVar("T")

ROOM_WAIT_S = 30.0
"""How long a reader waits for memory when the cache has no room, before it is told so."""
THREADS = 4


class Rooms:
    """Belongs to one event loop; files are worked on in a few threads. Methods raise OSError when a disk breaks."""

    def __init__(self, cache: NodeCache, memory_bytes: int, wait_s: float) -> None:
        self._cache = cache
        self._memory = ByteBudget(memory_bytes)
        self._wait_s = wait_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")

    @property
    def memory_free_bytes(self) -> int:
        return self._memory.free_bytes

    async def found(self, arrival: Arrival) -> bool | None:
        """Whether the blob lies in the node cache, and then in its room, and all of it has landed.

        None: a wrong one lies there, which is to be dropped. What another process wrote, or another life of this one,
        is not taken on trust.
        """
        digest, num_bytes = arrival.digest, arrival.num_bytes
        if self._cache.lacks(digest):
            return False
        if self._cache.has_checked(digest):
            opened = self._cache.open(digest, num_bytes)  # a name that is known: quicker than a thread is woken
        else:
            opened = await self._acquired(partial(self._cache.open, digest, num_bytes), _close_file)
        if opened is None:
            return False
        right = opened.checked
        try:
            right = right or await finished(self._run(lambda: digest_of(opened.fd, num_bytes))) == digest
        finally:
            if not right:
                os.close(opened.fd)
        if not right:
            return None
        self._cache.checked(digest)
        arrival.give(Room.of_file(opened.fd, num_bytes, self._cache.path(digest)))
        arrival.finish()
        return True

    async def make(self, arrival: Arrival) -> None:
        """Give an arrival room. Raises Exhausted when there is none, for one that somebody waits for after a while."""
        draft = None
        for polite in (True, False):
            if draft is None and polite != arrival.urgent:
                draft = await self._acquired(
                    partial(self._cache.draft, arrival.digest, arrival.num_bytes, polite=polite), self._abandon
                )
        if draft is not None:
            arrival.give(Room.of_draft(self._cache, draft))
            return
        if not arrival.urgent:
            raise Exhausted("the cache has no room for blobs that nobody waits for", reason="NO_ROOM")
        try:
            async with asyncio.timeout(self._wait_s):
                taken = await self._memory.take(arrival.num_bytes)
        except TimeoutError:
            raise Exhausted(
                "no room for another blob: cache and memory are held by those who read; give the store more of either",
                reason="NO_ROOM",
            ) from None
        try:
            arrival.give(await self._acquired(partial(Room.in_memory, arrival.num_bytes, taken), Room.close))
        except BaseException:
            self._memory.give(taken)
            raise

    async def still_right(self, arrival: Arrival) -> bool:
        """Whether a blob that is here has the bytes of its digest."""
        fd = arrival.room.fd
        return await finished(self._run(lambda: is_right(fd, arrival.num_bytes, arrival.digest, arrival.sums)))

    async def keep(self, arrival: Arrival) -> None:
        """Give it its name in the cache, where it lies there."""
        await finished(self._run(lambda: arrival.room.keep(arrival.digest)))

    async def drop(self, digest: str) -> None:
        """Drop a wrong blob from the cache."""
        await self._run(lambda: self._cache.drop(digest))

    async def take_back(self, arrival: Arrival) -> None:
        """Nobody reads it any more."""
        if not arrival.has_room:
            return
        if arrival.room.path is not None:
            arrival.room.close()  # its file stays, so that nothing is to be freed
        else:
            await self._run(arrival.room.close)
        self._memory.give(arrival.room.memory_bytes)

    async def close(self) -> None:
        await self._run(self._cache.close)
        self._threads.shutdown()

    async def _acquired(self, work: Callable[[], T], undo: Callable[[T], object]) -> T:
        """What ``work`` gets in a thread; undone when nobody is there any more to take it."""
        future = self._run(work)
        try:
            return await finished(future)
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                got = future.result()
                await self._run(lambda: undo(got))
            raise

    def _abandon(self, draft: Draft | None) -> None:
        if draft is not None:
            Room.of_draft(self._cache, draft).close()

    def _run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)


def _close_file(opened: Opened | None) -> None:
    if opened is not None:
        os.close(opened.fd)
