"""What a shelf does when nobody asks: follow live patterns and other processes, and look at copies that lie still."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from premoe_dataplane.blob_cache import Wanted
from premoe_dataplane.plan import Tier

from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.cache import NodeCache
from premoe_expert_store.cache.scrub import Pace, Stopped, look_at_one
from premoe_expert_store.cache.whole import wrong_pieces
from premoe_expert_store.catalogue import Pack
from premoe_expert_store.live_patterns import LivePatterns
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import touched
from premoe_runtime.storage import Store

T = TypeVar("T")

PATTERNS_S = 30.0
FOLDER_S = 2.0
SCRUB_BYTES_S = 8 << 20
"""Bytes looked at a second: 4 GiB in 9 minutes, for a hundredth of a core."""
SCRUB_PAUSE_S = 1.0

Found = Callable[[Pack, ExpertId, Tier], None]
"""Told of a blob whose copy in a tier was wrong, and is dropped."""


class Tending:
    """Runs from ``start`` to ``close``, in one thread of its own."""

    def __init__(
        self, store: Store, cache: NodeCache, redis: GuardedCache | None, found: Found, scrub_bytes_s: float
    ) -> None:
        self._cache, self._redis, self._found = cache, redis, found
        self._patterns = LivePatterns(store)
        self._pace = Pace(scrub_bytes_s) if scrub_bytes_s else None
        self._thread = ThreadPoolExecutor(2, thread_name_prefix="tending")
        self._packs: dict[str, tuple[Pack, dict[str, ExpertId]]] = {}
        self._due: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def know(self, pack: Pack) -> None:
        """A pack whose blobs are wanted. Starts with the first one."""
        if pack.folder in self._packs:
            return
        digests = {
            digest: ExpertId(layer, expert)
            for layer, one in enumerate(pack.manifest.layers)
            for expert, digest in enumerate(one.digests)
        }
        self._packs[pack.folder] = (pack, digests)
        if not self._tasks:
            work = [self._follow(), *([self._scrub(self._pace)] if self._pace else [])]
            self._tasks = [asyncio.create_task(one) for one in work]

    async def close(self) -> None:
        if self._pace is not None:
            self._pace.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _follow(self) -> None:
        while True:
            await self._in_thread(self._cache.refresh)
            for folder, (pack, _) in list(self._packs.items()):
                if time.monotonic() >= self._due.get(folder, 0.0):
                    shares = await self._in_thread(partial(self._patterns.refresh, pack.manifest))
                    self._due[folder] = time.monotonic() + PATTERNS_S
                    if shares is not None:
                        await self._in_thread(partial(self._cache.favour, shares))
            await asyncio.sleep(FOLDER_S)

    async def _scrub(self, pace: Pace) -> None:
        with suppress(Stopped):
            while True:
                await asyncio.sleep(SCRUB_PAUSE_S)
                wrong = await self._in_thread(lambda: look_at_one(self._cache, pace))
                for pack, digests in self._packs.values():
                    if wrong in digests:
                        self._found(pack, digests[wrong], "node")
                pack, digests = random.choice(list(self._packs.values()))
                expert = random.choice(list(digests.values()))
                if await self._in_thread(partial(self._wrong_in_redis, pack, expert, pace)):
                    self._found(pack, expert, "redis")

    def _wrong_in_redis(self, pack: Pack, expert: ExpertId, pace: Pace) -> bool:
        """Whether Redis had wrong pieces of a blob, which it forgets then. Blocking. Raises Stopped."""
        redis, sums = self._redis, pack.sums(expert)
        if redis is None or not sums or not redis.available:
            return False
        into = memoryview(bytearray(pack.blob_bytes))
        (holes,) = redis.read([Wanted(pack.manifest.digest(expert), into)])
        missing = {index for index, _ in touched(pack.blob_bytes, holes)}
        wrong = bool(
            wrong_pieces(into, [index for index in range(len(sums)) if index not in missing], sums, pack.blob_bytes)
        )
        if wrong:
            redis.forget(pack.manifest.digest(expert), pack.blob_bytes)
        pace.after(pack.blob_bytes - sum(hole.length for hole in holes))
        return wrong

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
