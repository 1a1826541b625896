"""Blobs for which nobody waits, brought a few at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress

from premoe_expert_store.cache import NodeCache
from premoe_expert_store.catalogue import Pack
from premoe_expert_store.held import HeldBlob
from premoe_expert_store.ports import Counts
from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.formats.ids import ExpertId

AT_ONCE = 8

Hold = Callable[[Pack, ExpertId], AbstractAsyncContextManager[HeldBlob]]
UnderWay = Callable[[Pack, ExpertId], bool]


class Prefetching:
    """Belongs to one event loop. ``hold`` brings a blob if that costs no better ones; ``under_way`` tells of others."""

    def __init__(self, cache: NodeCache, hold: Hold, under_way: UnderWay) -> None:
        self._cache, self._hold, self._under_way = cache, hold, under_way
        self._waiting: deque[tuple[Pack, ExpertId]] = deque()
        self._taken: set[tuple[str, str]] = set()
        self._workers: set[asyncio.Task[None]] = set()

    def want(self, pack: Pack, experts: Sequence[ExpertId]) -> Counts:
        """Begin with what is neither here nor on its way, as far as there is room."""
        wanted = {pack.manifest.digest(expert): expert for expert in experts}
        missing = [digest for digest in wanted if not self._cache.holds(digest)]
        new = [
            digest
            for digest in missing
            if (pack.folder, digest) not in self._taken and not self._under_way(pack, wanted[digest])
        ]
        taken = new[: self._room(pack, new)]
        for digest in taken:
            self._taken.add((pack.folder, digest))
            self._waiting.append((pack, wanted[digest]))
        while len(self._workers) < min(AT_ONCE, len(self._waiting)):
            task = asyncio.create_task(self._work())
            self._workers.add(task)
            task.add_done_callback(self._workers.discard)
        refused = len(new) - len(taken)
        return Counts(len(wanted) - len(missing), len(missing) - refused, refused)

    async def close(self) -> None:
        self._waiting.clear()
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers)

    async def _work(self) -> None:
        while self._waiting:
            pack, expert = self._waiting.popleft()
            try:
                with suppress(PremoeError):
                    async with self._hold(pack, expert) as blob:
                        await blob.landed(blob.num_bytes)
            finally:
                self._taken.discard((pack.folder, pack.manifest.digest(expert)))

    def _room(self, pack: Pack, digests: Sequence[str]) -> int:
        """For how many more of these there is room."""
        if not digests:
            return 0
        before = len(self._taken)
        return max(0, self._cache.would_fit(digests[0], pack.blob_bytes, len(digests) + before) - before)
