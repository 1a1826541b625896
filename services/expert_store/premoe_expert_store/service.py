"""Manifests, places and bytes of packs. Knows nothing of gRPC, Redis or where the store lies."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import blake3
from premoe_dataplane.plan import Tier

from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.filling.trip import Trip
from premoe_expert_store.held import HeldBlob
from premoe_expert_store.shelf import Shelf
from premoe_runtime.formats.errors import CorruptData, InvalidInput, PremoeError
from premoe_runtime.formats.ids import ExpertId

FRAME_BYTES = 1 << 20
MAX_EXPERTS = 65_536
"""Most blobs of one request; more than any model has."""

MAX_READ_BYTES = 8 << 20
"""Of a skeleton file at once."""


class BlobPlace(NamedTuple):
    """Where one blob may be read: tiers, best first."""

    expert: ExpertId
    digest: str
    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Places of blobs, ``num_bytes`` long each; ``expires_at`` is seconds since 1970."""

    blobs: tuple[BlobPlace, ...]
    num_bytes: int
    lease_id: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class BlobFrame:
    """Bytes of the ``index``-th blob asked for."""

    index: int
    offset: int
    data: memoryview
    tier: Tier


class ExpertStore:
    """All methods raise NotFound, InvalidInput, CorruptData, Unavailable.

    One stream holds at most the blobs of two windows of ``window_bytes``, and a frame in memory.
    """

    def __init__(self, catalogue: Catalogue, shelf: Shelf, *, window_bytes: int, lease_s: float) -> None:
        self._catalogue = catalogue
        self._shelf = shelf
        self._window_bytes = window_bytes
        self._lease_s = lease_s

    async def pack(self, model_id: str) -> Pack:
        return await self._catalogue.pack(model_id)

    async def resolve(self, model_id: str, experts: Sequence[ExpertId]) -> Resolved:
        """Where each blob may be read now."""
        pack = await self._checked(model_id, experts)
        here, in_redis = self._shelf.present(pack, experts), await self._shelf.in_redis(pack, experts)
        places = tuple(
            BlobPlace(expert, pack.manifest.digest(expert), _tiers(node, redis))
            for expert, node, redis in zip(experts, here, in_redis, strict=True)
        )
        return Resolved(places, pack.blob_bytes, secrets.token_hex(8), time.time() + self._lease_s)

    async def fetch(
        self, model_id: str, experts: Sequence[ExpertId], offset: int = 0
    ) -> AsyncGenerator[BlobFrame, None]:
        """Whole blobs in order, in frames of at most 1 MiB, from byte ``offset`` of the first one on.

        What is here is held against its digest first. Raises InvalidInput for an offset past the first blob's end.
        """
        pack = await self._checked(model_id, experts)
        if not 0 <= offset <= pack.blob_bytes:
            raise InvalidInput(f"offset {offset} is not in a blob of {pack.blob_bytes} bytes", reason="OFFSET_INVALID")
        trip = Trip()
        ahead = _Ahead(self._shelf, pack, experts, trip, max(1, self._window_bytes // pack.blob_bytes))
        try:
            for index in range(len(experts)):
                async with ahead.next() as blob:
                    for start in range(offset if index == 0 else 0, pack.blob_bytes, FRAME_BYTES):
                        length = min(FRAME_BYTES, pack.blob_bytes - start)
                        await blob.landed(start + length)
                        data = await asyncio.to_thread(blob.read, start, length)
                        yield BlobFrame(index, start, memoryview(data), blob.tier)
        finally:
            await ahead.close()
            trip.close()

    async def fetch_file(self, model_id: str, path: str) -> AsyncGenerator[memoryview, None]:
        """A skeleton file in frames of at most 1 MiB. Raises CorruptData at the end when its digest is wrong."""
        pack = await self._catalogue.pack(model_id)
        file = pack.file(path)
        digest = blake3.blake3()
        for start in range(0, file.num_bytes, MAX_READ_BYTES):
            length = min(MAX_READ_BYTES, file.num_bytes - start)
            data = await self._shelf.read_file(pack, path, start, length)
            await asyncio.to_thread(digest.update, data)
            for offset in range(0, len(data), FRAME_BYTES):
                yield memoryview(data)[offset : offset + FRAME_BYTES]
        if digest.hexdigest() != file.digest:
            raise CorruptData(
                f"{path} of pack {pack.manifest.model_id} does not match its digest; run premoe pack verify",
                reason="DIGEST_MISMATCH",
            )

    async def close(self) -> None:
        await self._shelf.close()

    async def _checked(self, model_id: str, experts: Sequence[ExpertId]) -> Pack:
        if not experts:
            raise InvalidInput("no experts asked for", reason="EXPERTS_MISSING")
        if len(experts) > MAX_EXPERTS:
            raise InvalidInput(f"{len(experts)} experts asked for, at most {MAX_EXPERTS}", reason="EXPERTS_TOO_MANY")
        pack = await self._catalogue.pack(model_id)
        pack.check_experts(experts)
        return pack


class _Ahead:
    """Holds the blobs of a stream in order, those of two windows at most before they are needed.

    One after another: a stream that waits for room for a blob holds none that comes after it, and so keeps nobody from
    the room that it waits for.
    """

    def __init__(self, shelf: Shelf, pack: Pack, experts: Sequence[ExpertId], trip: Trip, window: int) -> None:
        self._shelf, self._pack, self._experts, self._trip = shelf, pack, experts, trip
        self._room = asyncio.Semaphore(2 * window)
        self._held: asyncio.Queue[_Hold | PremoeError] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    @asynccontextmanager
    async def next(self) -> AsyncIterator[HeldBlob]:
        """The next blob. Raises what holding it raised."""
        held = await self._held.get()
        if isinstance(held, PremoeError):
            raise held
        try:
            yield held.blob
        finally:
            await held.end()
            self._room.release()

    async def close(self) -> None:
        """Let go of everything."""
        self._task.cancel()
        await asyncio.wait([self._task])
        while not self._held.empty():
            if isinstance(held := self._held.get_nowait(), _Hold):
                await held.end()

    async def _run(self) -> None:
        try:
            for expert in self._experts:
                await self._room.acquire()
                context = self._shelf.hold(self._pack, expert, recheck=True, trip=self._trip)
                self._held.put_nowait(_Hold(await context.__aenter__(), context))
        except PremoeError as error:
            self._held.put_nowait(error)


class _Hold(NamedTuple):
    """A blob, and what lets it go."""

    blob: HeldBlob
    context: AbstractAsyncContextManager[HeldBlob]

    async def end(self) -> None:
        await self.context.__aexit__(None, None, None)


def _tiers(node: bool, redis: bool) -> tuple[Tier, ...]:
    """Where a blob lies, nearest first."""
    nearer: tuple[tuple[Tier, bool], ...] = (("node", node), ("redis", redis))
    return (*(tier for tier, there in nearer if there), "object")
