"""Manifests, plans, leases and bytes of packs, over the shelf. Knows nothing of gRPC, HTTP, Redis or where they lie."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import blake3
from premoe_dataplane.frames import FRAME_BYTES
from premoe_dataplane.plan import SwapPlan, Tier
from premoe_servicekit.roles import SHARED, Caller

from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.filling.trip import Trip
from premoe_expert_store.held import HeldBlob
from premoe_expert_store.leasing import LeaseNames
from premoe_expert_store.ports import Counts, Event
from premoe_expert_store.shelf import Shelf
from premoe_expert_store.sources import Ways
from premoe_runtime.formats.errors import CorruptData, InvalidInput, PremoeError
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.storage import READ_PART_BYTES

MAX_EXPERTS = 65_536
"""Most blobs of one request; more than any model has."""


@dataclass(frozen=True, slots=True)
class BlobFrame:
    """Bytes of the ``index``-th blob asked for."""

    index: int
    offset: int
    data: memoryview
    tier: Tier


class ExpertStore:
    """All methods raise NotFound, InvalidInput, CorruptData, Unavailable, Exhausted.

    Each takes who asks: nobody hears of packs or leases of another tenant.

    One stream holds at most the blobs of two windows of ``window_bytes``, and a frame in memory.
    """

    def __init__(
        self, catalogue: Catalogue, shelf: Shelf, ways: Ways, leases: LeaseNames | None = None, *, window_bytes: int
    ) -> None:
        self._catalogue = catalogue
        self._shelf = shelf
        self._ways = ways
        self._leases = leases or LeaseNames()
        self._window_bytes = window_bytes

    async def pack(self, model_id: str, caller: Caller = SHARED) -> Pack:
        return await self._catalogue.pack(model_id, caller)

    async def resolve(
        self, model_id: str, experts: Sequence[ExpertId], schemes: Sequence[str] = (), caller: Caller = SHARED
    ) -> SwapPlan:
        """Where each blob may be read, best first. No disk and no other machine is asked for it."""
        pack = await self._checked(model_id, experts, caller)
        lease = self._shelf.lease(pack, experts)
        plans = self._ways.plans(pack, experts, self._shelf.present(pack, experts), schemes, until=lease.expires_at)
        return SwapPlan(plans, self._leases.told(lease.lease_id, caller), lease.expires_at)

    async def prefetch(self, model_id: str, experts: Sequence[ExpertId], caller: Caller = SHARED) -> Counts:
        """Begin to bring blobs; does not wait for them."""
        return self._shelf.prefetch(await self._checked(model_id, experts, caller), experts)

    def renew(self, lease_id: str, caller: Caller = SHARED) -> float:
        """The new end of a lease, seconds since 1970. Raises NotFound (LEASE_ENDED), also for another tenant's."""
        return self._shelf.renew(self._leases.kept(lease_id, caller))

    def release(self, lease_id: str, caller: Caller = SHARED) -> None:
        """End a lease of the caller's tenant; others are left alone."""
        if (kept := self._leases.own(lease_id, caller)) is not None:
            self._shelf.release(kept)

    async def watch(self, model_id: str, caller: Caller = SHARED) -> AsyncGenerator[Event, None]:
        """What happens to a pack's blobs, beginning with the state of now; it does not end by itself."""
        pack = await self._catalogue.pack(model_id, caller)
        async with aclosing(self._shelf.watch(pack)) as events:
            async for event in events:
                yield event

    async def fetch(
        self, model_id: str, experts: Sequence[ExpertId], offset: int = 0, caller: Caller = SHARED
    ) -> AsyncGenerator[BlobFrame, None]:
        """Whole blobs in order, in frames of at most 1 MiB, from byte ``offset`` of the first one on.

        What is here is held against its digest first. Raises InvalidInput for an offset past the first blob's end.
        """
        pack = await self._checked(model_id, experts, caller)
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

    async def fetch_file(self, model_id: str, path: str, caller: Caller = SHARED) -> AsyncGenerator[memoryview, None]:
        """A skeleton file in frames of at most 1 MiB. Raises CorruptData at the end when its digest is wrong."""
        pack = await self._catalogue.pack(model_id, caller)
        file = pack.file(path)
        digest = blake3.blake3()
        for start in range(0, file.num_bytes, READ_PART_BYTES):
            length = min(READ_PART_BYTES, file.num_bytes - start)
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

    async def _checked(self, model_id: str, experts: Sequence[ExpertId], caller: Caller) -> Pack:
        if not experts:
            raise InvalidInput("no experts asked for", reason="EXPERTS_MISSING")
        if len(experts) > MAX_EXPERTS:
            raise InvalidInput(f"{len(experts)} experts asked for, at most {MAX_EXPERTS}", reason="EXPERTS_TOO_MANY")
        pack = await self._catalogue.pack(model_id, caller)
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
