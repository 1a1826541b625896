"""What watchers of the store are told, and how: a slow one misses no news, only how often they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from premoe_dataplane.plan import Tier

from premoe_expert_store.ports import BlobsInvalid, Event, PackGone, Progress
from premoe_runtime.formats.ids import ExpertId

PROGRESS_S = 0.5
"""Progress is told so often at most."""


class _Watcher:
    """What one watcher has not been told yet. Bounded by the number of experts."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.invalid: dict[Tier, set[ExpertId]] = {}
        self.gone: str | None = None

    def take(self) -> list[Event]:
        invalid, self.invalid = self.invalid, {}
        gone, self.gone = self.gone, None
        found: list[Event] = [BlobsInvalid(tuple(sorted(experts)), tier) for tier, experts in invalid.items()]
        return [*found, PackGone(gone)] if gone is not None else found


class Watchers:
    """Watchers by pack, named by its folder. Belongs to one event loop."""

    def __init__(self, *, progress_s: float = PROGRESS_S) -> None:
        self._progress_s = progress_s
        self._watchers: dict[str, set[_Watcher]] = {}

    async def watch(self, pack: str, progress: Callable[[], Progress]) -> AsyncGenerator[Event, None]:
        """Events of a pack from now on; the first one is its progress, others of it come only when it has changed."""
        watcher = _Watcher()
        self._watchers.setdefault(pack, set()).add(watcher)
        told: Progress | None = None
        try:
            while True:
                for event in watcher.take():
                    yield event
                if (now := progress()) != told:
                    told = now
                    yield now
                try:
                    await asyncio.wait_for(watcher.news.wait(), self._progress_s)
                except TimeoutError:
                    continue
                watcher.news.clear()
        finally:
            watchers = self._watchers[pack]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[pack]

    def any(self, pack: str) -> bool:
        """Whether anybody watches it."""
        return pack in self._watchers

    def invalid(self, pack: str, expert: ExpertId, tier: Tier) -> None:
        for watcher in self._watchers.get(pack, ()):
            watcher.invalid.setdefault(tier, set()).add(expert)
            watcher.news.set()

    def gone(self, pack: str, message: str) -> None:
        for watcher in self._watchers.get(pack, ()):
            watcher.gone = message
            watcher.news.set()
