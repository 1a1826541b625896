"""Manifests, places and bytes of packs. Knows nothing of gRPC, Redis or where the store lies."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import blake3

from premoe_expert_store.budget import ByteBudget
from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.loader import Blob, BlobLoader, TierName
from premoe_expert_store.reads import MAX_READ_BYTES, windows
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.ids import ExpertId

FRAME_BYTES = 1 << 20
MAX_EXPERTS = 65_536
"""Most blobs of one request; more than any model has."""

T = TypeVar("T")
R = TypeVar("R")


class BlobPlace(NamedTuple):
    """Where one blob may be read: tiers, best first."""

    expert: ExpertId
    digest: str
    tiers: tuple[TierName, ...]


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
    tier: TierName


class ExpertStore:
    """All methods raise NotFound, InvalidInput, CorruptData, Unavailable.

    ``window_bytes`` are read at a time for one stream, and one window ahead; ``budget`` bounds all streams together.
    """

    def __init__(
        self, catalogue: Catalogue, loader: BlobLoader, *, budget: ByteBudget, window_bytes: int, lease_s: float
    ) -> None:
        self._catalogue = catalogue
        self._loader = loader
        self._budget = budget
        self._window_bytes = window_bytes
        self._lease_s = lease_s

    async def pack(self, model_id: str) -> Pack:
        return await self._catalogue.pack(model_id)

    async def resolve(self, model_id: str, experts: Sequence[ExpertId]) -> Resolved:
        """Where each blob may be read now."""
        pack = await self._checked(model_id, experts)
        cached = await self._loader.cached(pack, experts)
        places = tuple(
            BlobPlace(expert, pack.manifest.digest(expert), ("redis", "object") if hit else ("object",))
            for expert, hit in zip(experts, cached, strict=True)
        )
        return Resolved(places, pack.blob_bytes, secrets.token_hex(8), time.time() + self._lease_s)

    async def fetch(self, model_id: str, experts: Sequence[ExpertId]) -> AsyncGenerator[BlobFrame, None]:
        """Whole blobs in order, in frames of at most 1 MiB. Memory: two windows, whatever the reader's pace."""
        pack = await self._checked(model_id, experts)
        index = 0
        parts = windows(experts, pack.blob_bytes, self._window_bytes)
        async with aclosing(self._ahead(parts, lambda part: self._load(pack, part), pack.blob_bytes)) as loaded:
            async for blobs in loaded:
                for blob in blobs:
                    for offset in range(0, pack.blob_bytes, FRAME_BYTES):
                        yield BlobFrame(index, offset, blob.data[offset : offset + FRAME_BYTES], blob.tier)
                    index += 1
                del blobs, blob  # the next window must not wait in memory beside this one

    async def fetch_file(self, model_id: str, path: str) -> AsyncGenerator[memoryview, None]:
        """A skeleton file in frames of at most 1 MiB. Raises CorruptData at the end when its digest is wrong."""
        pack = await self._catalogue.pack(model_id)
        file = pack.file(path)
        ranges = [
            (start, min(MAX_READ_BYTES, file.num_bytes - start)) for start in range(0, file.num_bytes, MAX_READ_BYTES)
        ]
        digest = blake3.blake3()

        async def read(part: Sequence[tuple[int, int]]) -> bytes:
            return await self._loader.read(pack, path, *part[0])

        async with aclosing(self._ahead([[one] for one in ranges], read, MAX_READ_BYTES)) as loaded:
            async for data in loaded:
                digest.update(data)
                for offset in range(0, len(data), FRAME_BYTES):
                    yield memoryview(data)[offset : offset + FRAME_BYTES]
        if digest.hexdigest() != file.digest:
            raise CorruptData(
                f"{path} of pack {pack.manifest.model_id} does not match its digest; run premoe pack verify",
                reason="DIGEST_MISMATCH",
            )

    async def close(self) -> None:
        await self._loader.close()

    async def _checked(self, model_id: str, experts: Sequence[ExpertId]) -> Pack:
        if not experts:
            raise InvalidInput("no experts asked for", reason="EXPERTS_MISSING")
        if len(experts) > MAX_EXPERTS:
            raise InvalidInput(f"{len(experts)} experts asked for, at most {MAX_EXPERTS}", reason="EXPERTS_TOO_MANY")
        pack = await self._catalogue.pack(model_id)
        pack.check_experts(experts)
        return pack

    async def _load(self, pack: Pack, part: Sequence[ExpertId]) -> list[Blob]:
        return await self._loader.load(pack, part)

    async def _ahead(
        self, parts: Sequence[Sequence[T]], load: Callable[[Sequence[T]], Awaitable[R]], item_bytes: int
    ) -> AsyncGenerator[R, None]:
        """Load parts in order, one ahead of the reader, each within the memory budget while it is held."""

        async def held(part: Sequence[T]) -> tuple[R, int]:
            taken = await self._budget.take(len(part) * item_bytes)
            try:
                return await load(part), taken
            except BaseException:
                self._budget.give(taken)
                raise

        def give_back(task: asyncio.Task[tuple[R, int]]) -> None:
            if not task.cancelled() and task.exception() is None:
                self._budget.give(task.result()[1])

        tasks = (asyncio.create_task(held(part)) for part in parts)  # each starts when it is taken
        upcoming = next(tasks, None)
        try:
            while upcoming is not None:
                loaded, taken = await upcoming
                upcoming = next(tasks, None)
                try:
                    yield loaded
                finally:
                    del loaded
                    self._budget.give(taken)
        finally:
            if upcoming is not None:
                # Nobody will read this part. It may be there already: a cancellation can come before its reader.
                upcoming.cancel()
                upcoming.add_done_callback(give_back)
