"""A shelf whose blobs come when a test says so."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from premoe_dataplane.plan import Tier
from premoe_expert_store.catalogue import Pack
from premoe_expert_store.ports import Purpose

from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.formats.ids import ExpertId


class FakeBlob:
    """Implements what the byte server asks of a held blob, over a file. ``arrive`` and ``fail`` move it."""

    tier: Tier = "node"

    def __init__(self, data: bytes, digest: str, file: Path, *, whole: bool) -> None:
        self.num_bytes, self.digest = len(data), digest
        self._data, self._file = data, file
        self._arrived = 0
        self._failure: PremoeError | None = None
        self._moved = asyncio.Condition()
        self.fd = os.open(file, os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.fd, len(data))
        if whole:
            os.pwrite(self.fd, data, 0)
            self._arrived = len(data)

    @property
    def path(self) -> Path | None:
        return self._file if self._arrived == self.num_bytes else None

    async def landed(self, end: int) -> None:
        if self._arrived >= end:
            return
        async with self._moved:
            await self._moved.wait_for(lambda: self._arrived >= end or self._failure is not None)
        if self._arrived < end and self._failure is not None:
            raise self._failure

    async def arrive(self, end: int) -> None:
        os.pwrite(self.fd, self._data[self._arrived : end], self._arrived)
        self._arrived = end
        await self._tell()

    async def fail(self, error: PremoeError) -> None:
        self._failure = error
        await self._tell()

    async def _tell(self) -> None:
        async with self._moved:
            self._moved.notify_all()


class FakeShelf:
    """A pack's blobs, in ``folder``; those of ``cold`` come by ``FakeBlob.arrive``."""

    def __init__(self, blobs: dict[ExpertId, bytes], folder: Path, cold: Sequence[ExpertId] = ()) -> None:
        self._data, self._folder = blobs, folder
        self._cold = set(cold)
        self.blobs: dict[ExpertId, FakeBlob] = {}
        self.holds = 0
        self.most_holds = 0
        self.purposes: list[Purpose] = []
        self.idle = asyncio.Event()
        """Set while nothing is held, after something was."""
        self.on_hold: Callable[[], None] = lambda: None

    def opened(self, pack: Pack, expert: ExpertId) -> int | None:
        blob = self.blob(pack, expert)
        return None if blob.path is None else os.dup(blob.fd)

    @asynccontextmanager
    async def hold(self, pack: Pack, expert: ExpertId, *, purpose: Purpose) -> AsyncIterator[FakeBlob]:
        self.on_hold()
        self.purposes.append(purpose)
        self.holds += 1
        self.idle.clear()
        self.most_holds = max(self.holds, self.most_holds)
        try:
            yield self.blob(pack, expert)
        finally:
            self.holds -= 1
            if not self.holds:
                self.idle.set()

    def blob(self, pack: Pack, expert: ExpertId) -> FakeBlob:
        if expert not in self.blobs:
            digest = pack.manifest.digest(expert)
            whole = expert not in self._cold
            self.blobs[expert] = FakeBlob(self._data[expert], digest, self._folder / digest, whole=whole)
        return self.blobs[expert]

    async def close(self) -> None:
        for blob in self.blobs.values():
            os.close(blob.fd)
        self.blobs.clear()
