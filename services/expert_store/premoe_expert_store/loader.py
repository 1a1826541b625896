"""Whole blobs from the cache and, for what it does not have, from object storage; every blob is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import blake3
from opentelemetry.trace import SpanKind
from premoe_dataplane.blob_cache import Wanted
from premoe_servicekit.deadlines import carried
from premoe_servicekit.faults import storage_fault
from premoe_servicekit.metrics import Metrics
from premoe_servicekit.telemetry import tracer

from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.catalogue import Pack
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.reads import Missing, Read, plan_reads
from premoe_expert_store.single_flight import SingleFlight
from premoe_runtime.formats.errors import CorruptData, PremoeError
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import Hole
from premoe_runtime.storage import Store

T = TypeVar("T")
TierName = Literal["redis", "object"]

VERIFY = "run premoe pack verify"
CACHE_BACKLOG_BYTES = 128 << 20
"""Bytes waiting to be cached beyond which blobs are not cached: a slow cache must not hold memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """A checked blob and the tier it came from."""

    data: memoryview
    tier: TierName


@dataclass(slots=True, eq=False)
class _Draft:
    """A blob being read."""

    expert: ExpertId
    digest: str
    data: memoryview
    holes: tuple[Hole, ...]


class BlobLoader:
    """Reads blobs; concurrent requests for one digest share one read. Call from one event loop."""

    def __init__(
        self, store: Store, cache: GuardedCache | None, *, threads: int, metrics: StoreMetrics | None = None
    ) -> None:
        self._store = store
        self._cache = cache
        self._metrics = metrics or StoreMetrics(Metrics())
        self._lanes = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="blobs")
        self._flights: SingleFlight[str, Blob] = SingleFlight()
        self._writes: set[asyncio.Future[None]] = set()
        self._backlog_bytes = 0

    async def load(self, pack: Pack, experts: Sequence[ExpertId]) -> list[Blob]:
        """The blobs of ``experts``, in order. Raises NotFound, CorruptData, Unavailable."""
        by_digest = {pack.manifest.digest(expert): expert for expert in experts}
        blobs = await self._flights.get(list(by_digest), lambda digests: self._load(pack, by_digest, digests))
        return [blobs[pack.manifest.digest(expert)] for expert in experts]

    async def cached(self, pack: Pack, experts: Sequence[ExpertId]) -> list[bool]:
        """Which blobs the cache holds whole."""
        cache = self._cache
        if cache is None:
            return [False] * len(experts)
        digests = [pack.manifest.digest(expert) for expert in experts]
        return await self._in_thread(lambda: cache.holds(digests, pack.blob_bytes))

    async def read(self, pack: Pack, path: str, offset: int, length: int) -> bytes:
        """A range of one of the pack's files."""
        try:
            return await self._in_thread(lambda: self._store.get_range(f"{pack.folder}/{path}", offset, length))
        except PremoeError as error:
            raise storage_fault(f"{path} of pack {pack.manifest.model_id}", error, VERIFY) from error

    async def close(self) -> None:
        """Wait for what is being cached, then let the threads go."""
        if self._writes:
            await asyncio.wait(self._writes)
        self._threads.shutdown(cancel_futures=True)

    async def _load(
        self, pack: Pack, experts: Mapping[str, ExpertId], digests: Sequence[str]
    ) -> dict[str, Blob | PremoeError]:
        drafts = [
            _Draft(experts[digest], digest, memoryview(bytearray(pack.blob_bytes)), (Hole(0, pack.blob_bytes),))
            for digest in digests
        ]
        if self._cache is not None and self._cache.available:
            await self._from_cache(self._cache, drafts)
        results: dict[str, Blob | PremoeError] = {
            draft.digest: Blob(draft.data.toreadonly(), "redis") for draft in drafts if not draft.holes
        }
        incomplete = [draft for draft in drafts if draft.holes]
        if incomplete:
            results.update(await self._from_objects(pack, incomplete))
        return results

    async def _from_cache(self, cache: GuardedCache, drafts: Sequence[_Draft]) -> None:
        """Fill what the cache has. A blob that is whole but wrong is forgotten and read again."""

        def read() -> None:
            wanted = [Wanted(draft.digest, draft.data) for draft in drafts]
            for draft, holes in zip(drafts, cache.read(wanted), strict=True):
                draft.holes = holes
                if not holes and not _matches(draft):
                    cache.forget(draft.digest, len(draft.data))
                    draft.holes = (Hole(0, len(draft.data)),)

        with tracer().start_as_current_span(
            "fetch redis",
            kind=SpanKind.CLIENT,
            attributes={
                "db.system.name": "redis",
                "db.operation.name": "GET",
                "db.operation.batch.size": len(drafts),
                "premoe.fetch.source": "redis",
            },
        ) as span:
            await self._in_thread(read)
            missing = sum(hole.length for draft in drafts for hole in draft.holes)
            found, whole = sum(len(draft.data) for draft in drafts) - missing, sum(not draft.holes for draft in drafts)
            span.set_attribute("premoe.fetch.bytes", found)
            span.set_attribute("premoe.fetch.blobs", whole)
            self._metrics.asked_cache(blobs=len(drafts), hits=whole, num_bytes=found)

    async def _from_objects(self, pack: Pack, drafts: Sequence[_Draft]) -> dict[str, Blob | PremoeError]:
        with tracer().start_as_current_span(
            "fetch object",
            kind=SpanKind.CLIENT,
            attributes={
                "premoe.fetch.source": "object",
                "premoe.fetch.bytes": sum(hole.length for draft in drafts for hole in draft.holes),
                "premoe.fetch.blobs": len(drafts),
            },
        ):
            results = dict(zip((draft.digest for draft in drafts), await self._fill_all(pack, drafts), strict=True))
        for draft in drafts:
            if isinstance(results[draft.digest], Blob):
                self._metrics.read_objects(sum(hole.length for hole in draft.holes))
                self._keep(draft)
        return results

    async def _fill_all(self, pack: Pack, drafts: Sequence[_Draft]) -> list[Blob | PremoeError]:
        """Joined range reads for all; when one fails, blob by blob, so that the error stays with its blob."""
        try:
            await self._fill(pack, drafts)
        except PremoeError as error:
            if len(drafts) == 1:
                return [storage_fault(f"{drafts[0].expert} of pack {pack.manifest.model_id}", error, VERIFY)]
            return [result for draft in drafts for result in await self._fill_all(pack, [draft])]
        right = await self._in_thread(lambda: [_matches(draft) for draft in drafts])
        return [
            Blob(draft.data.toreadonly(), "object") if matches else await self._second_try(pack, draft)
            for draft, matches in zip(drafts, right, strict=True)
        ]

    async def _fill(self, pack: Pack, drafts: Sequence[_Draft]) -> None:
        missing = []
        for draft in drafts:
            path, start = pack.place(draft.expert)
            missing += [
                Missing(path, start + hole.offset, draft.data[hole.offset : hole.offset + hole.length])
                for hole in draft.holes
            ]
        reads = plan_reads(missing)
        # A lane a thread, not a task a read: a swap of small blobs is hundreds of reads.
        lanes = [reads[first :: self._lanes] for first in range(min(self._lanes, len(reads)))]
        tasks = [asyncio.ensure_future(self._in_thread(partial(self._read_all, lane))) for lane in lanes]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _read_all(self, reads: Sequence[Read]) -> None:
        for read in reads:
            self._store.read_into(read.path, read.offset, read.views)

    async def _second_try(self, pack: Pack, draft: _Draft) -> Blob | PremoeError:
        """After a wrong digest: pieces from the cache may be what is wrong, so a mixed blob is read again, whole."""
        if sum(hole.length for hole in draft.holes) < len(draft.data):
            draft.holes = (Hole(0, len(draft.data)),)
            (result,) = await self._fill_all(pack, [draft])
            return result
        return CorruptData(
            f"{draft.expert} of pack {pack.manifest.model_id} does not match its digest; {VERIFY}",
            reason="DIGEST_MISMATCH",
        )

    def _keep(self, draft: _Draft) -> None:
        """Cache a checked blob in the background, unless too much is waiting already."""
        cache = self._cache
        if cache is None or self._backlog_bytes + len(draft.data) > CACHE_BACKLOG_BYTES:
            return
        self._backlog_bytes += len(draft.data)
        write = asyncio.ensure_future(self._in_thread(lambda: cache.write(draft.digest, draft.data, draft.holes)))
        self._writes.add(write)

        def done(_: asyncio.Future[None]) -> None:
            self._writes.discard(write)
            self._backlog_bytes -= len(draft.data)

        write.add_done_callback(done)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, carried(work))


def _matches(draft: _Draft) -> bool:
    return blake3.blake3(draft.data).hexdigest() == draft.digest
