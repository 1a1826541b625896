"""Brings what is missing of an arrival: Redis, another replica, object storage, each piece checked as it lands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from premoe_dataplane.blob_cache import Wanted
from premoe_servicekit.faults import storage_fault

from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.filling.arrival import Arrival, Sorted
from premoe_expert_store.filling.claiming import Claim, Claiming
from premoe_expert_store.filling.claims import Claims
from premoe_expert_store.filling.landing import Origin
from premoe_expert_store.filling.objects import ObjectReader, Reading
from premoe_expert_store.filling.peer import PeerTier
from premoe_expert_store.filling.trip import Trip
from premoe_expert_store.metrics import StoreMetrics
from premoe_runtime.formats.errors import CorruptData, PremoeError
from premoe_runtime.formats.pieces import PIECE_BYTES, Hole, piece, pieces, runs

T = TypeVar("T")

VERIFY = "run premoe pack verify"
PIECES_A_READ = 8
"""Of object storage at once: just below 8 MiB."""
CACHE_BACKLOG_BYTES = 128 << 20
"""Bytes waiting to be cached beyond which blobs are not cached: a slow cache must not hold memory."""
CLAIM_WAIT_S = 15.0
"""How long a replica waits for what another one reads, before it reads itself."""
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.2

log = logging.getLogger(__name__)

WrongCopy = Callable[[Arrival, Origin], Awaitable[None]]
"""Told of an arrival for which a tier had wrong bytes, which are not used."""


class Filler:
    """Belongs to one event loop. Blocking work is done in the threads of its tiers."""

    def __init__(
        self,
        objects: ObjectReader,
        redis: GuardedCache | None,
        *,
        claims: Claims | None = None,
        claim_wait_s: float = CLAIM_WAIT_S,
        threads: int,
        wrong_copy: WrongCopy,
        metrics: StoreMetrics,
    ) -> None:
        self._objects = objects
        self._redis = redis
        self._claims = Claiming(claims, self.with_redis) if claims is not None else None
        self._claim_wait_s = claim_wait_s
        self._peers: PeerTier | None = None
        self._redis_threads = ThreadPoolExecutor(threads, thread_name_prefix="redis")
        self._hashing = ThreadPoolExecutor(4, thread_name_prefix="hashing")
        self._wrong_copy = wrong_copy
        self._metrics = metrics
        self._writes: set[asyncio.Task[None]] = set()
        self._backlog_bytes = 0

    def ask_peers(self, peers: PeerTier) -> None:
        """From now on the replica that a blob belongs to is asked before object storage."""
        self._peers = peers

    async def fill(self, arrival: Arrival, trip: Trip) -> None:
        """Returns when all of it is there and right, not yet under its name. Raises PremoeError."""
        await self._from_redis(arrival, trip)
        await self._from_peer(arrival, trip)
        claim = await self._claim(arrival, trip) if arrival.landing.missing else None
        try:
            await self._from_objects(arrival, trip)
            if not await self.is_right(arrival):
                await self._all_anew(arrival, trip)
        except BaseException:
            if claim is not None:
                await claim.drop()
            raise
        self._write_through(arrival, claim)

    async def is_right(self, arrival: Arrival) -> bool:
        """Whether the whole matches its digest."""
        if arrival.digested:
            return arrival.digest_found() == arrival.digest
        return await finished(self._in(self._hashing, lambda: arrival.digest_found() == arrival.digest))

    async def with_redis(self, work: Callable[[], T]) -> T:
        """Work on Redis, in its threads."""
        return await self._in(self._redis_threads, work)

    def hasten(self, arrival: Arrival) -> None:
        """Somebody waits for it now."""
        path, start = arrival.pack.place(arrival.expert)
        self._objects.hasten(path, start, start + arrival.num_bytes)

    async def close(self) -> None:
        """Wait for what is being cached, then let the threads go."""
        if self._writes:
            await asyncio.wait(self._writes)
        if self._peers is not None:
            self._peers.close()
        if self._claims is not None:
            self._claims.close()
        for threads in (self._redis_threads, self._hashing):
            threads.shutdown(cancel_futures=True)

    async def _from_redis(self, arrival: Arrival, trip: Trip) -> None:
        redis = self._redis
        if redis is None or not redis.available:
            return
        # What has landed must not change, whatever Redis says now.
        into = memoryview(bytearray(arrival.num_bytes)) if arrival.landing.there_bytes else arrival.room.view

        def read() -> Sorted:
            (holes,) = redis.read([Wanted(arrival.digest, into)])
            right, wrong = arrival.sort_out(_there(arrival, holes), into)
            if wrong:
                redis.forget(arrival.digest, arrival.num_bytes)
            new = [index for index in right if index in arrival.landing.missing]
            if into is not arrival.room.view:
                for at in (piece(index, arrival.num_bytes) for index in new):
                    arrival.room.view[at.offset : at.end] = into[at.offset : at.end]
            return new, wrong

        with trip.asking("redis") as gain:
            before = arrival.landing.there_bytes
            right, wrong = await finished(self._in(self._redis_threads, read))
            arrival.land(right, "redis")
            gain.num_bytes = arrival.landing.there_bytes - before
            gain.blobs = not arrival.landing.missing
        self._metrics.asked_cache(blobs=1, hits=gain.blobs, num_bytes=gain.num_bytes)
        if wrong:
            arrival.redis_forgot = True
            await self._wrong_copy(arrival, "redis")

    async def _from_peer(self, arrival: Arrival, trip: Trip) -> None:
        if self._peers is None or not arrival.landing.missing or (url := self._peers.url(arrival)) is None:
            return
        with trip.asking("peer") as gain:
            before = arrival.landing.there_bytes
            right = await self._peers.read(arrival, url)
            gain.num_bytes = arrival.landing.there_bytes - before
            gain.blobs = not arrival.landing.missing
        self._metrics.read_peer(gain.num_bytes)
        if not right:
            await self._wrong_copy(arrival, "peer")

    async def _claim(self, arrival: Arrival, trip: Trip) -> Claim | None:
        """The right to read object storage for all replicas; None: read it without, or nothing is missing any more.

        While another replica has it, wait for what that writes to Redis, for a while.
        """
        redis, claims = self._redis, self._claims
        if redis is None or claims is None or not redis.available:
            return None
        end, pause = asyncio.get_running_loop().time() + self._claim_wait_s, FIRST_PAUSE_S
        while redis.available and asyncio.get_running_loop().time() < end:
            try:
                claim = await claims.take(arrival.digest)
            except PremoeError as error:
                log.debug("no claim: %s", error)
                return None
            # Whoever had a claim before may have ended meanwhile.
            (there,) = await self.with_redis(lambda: redis.holds([arrival.digest], arrival.num_bytes))
            if there:
                await self._from_redis(arrival, trip)
            if claim is not None:
                return claim
            if not arrival.landing.missing:
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return None

    async def _from_objects(self, arrival: Arrival, trip: Trip) -> None:
        missing = arrival.landing.missing
        if not missing:
            return
        with trip.asking("object") as gain:
            wanted = sum(hole.length for hole in runs(missing, arrival.num_bytes))
            try:
                right = await self._read_objects(arrival, missing)
            except PremoeError as error:
                raise storage_fault(_named(arrival), error, VERIFY) from error
            if not right:
                await self._wrong_copy(arrival, "object")
                raise _mismatch(arrival)
            gain.blobs, gain.num_bytes = 1, wanted
        self._metrics.read_objects(wanted)

    async def _read_objects(self, arrival: Arrival, missing: Sequence[int]) -> bool:
        """Whether all that was read is right, as far as sums tell. Raises what the store raises."""
        readings: list[Reading] = []
        path, start = arrival.pack.place(arrival.expert)
        for indices in _runs_of(missing):
            hole = runs(indices, arrival.num_bytes)[0]
            reading = self._objects.read(
                path,
                start + hole.offset,
                hole.length,
                partial(arrival.take, indices),
                urgent=arrival.urgent,
            )
            reading.result.add_done_callback(lambda result: self._object_landed(arrival, result))
            readings.append(reading)
        try:
            for reading in readings:
                _, wrong = await asyncio.shield(reading.result)
                if wrong:
                    return False
            return True
        finally:
            if under_way := [one.result for one in readings if self._objects.withdraw(one)]:
                await asyncio.wait(under_way)
            for reading in readings:
                if reading.result.done() and not reading.result.cancelled():
                    reading.result.exception()  # seen, whoever failed first

    def _object_landed(self, arrival: Arrival, result: asyncio.Future[tuple[list[int], list[int]]]) -> None:
        if not result.cancelled() and result.exception() is None:
            arrival.land(result.result()[0], "object")

    async def _all_anew(self, arrival: Arrival, trip: Trip) -> None:
        """After a wrong digest: copies from elsewhere may be what is wrong, so all is read from object storage."""
        others: tuple[Origin, ...] = ("redis", "peer")
        mixed = [origin for origin in others if arrival.landing.came_from(origin)]
        redis = self._redis
        if redis is not None and "redis" in mixed:
            await finished(self._in(self._redis_threads, lambda: redis.forget(arrival.digest, arrival.num_bytes)))
            arrival.redis_forgot = True
        for origin in mixed:
            await self._wrong_copy(arrival, origin)
        if mixed:
            arrival.lose_all()
            await self._from_objects(arrival, trip)
        if not mixed or not await self.is_right(arrival):
            await self._wrong_copy(arrival, "object")
            raise _mismatch(arrival)

    def _write_through(self, arrival: Arrival, claim: Claim | None) -> None:
        """Cache what Redis lacks of a checked blob in the background, unless too much is waiting already."""
        redis = self._redis
        everything = [Hole(0, arrival.num_bytes)]
        holes = everything if arrival.redis_forgot else runs(arrival.landing.not_from("redis"), arrival.num_bytes)
        if redis is None or (not holes and claim is None):
            return
        room = bool(holes) and self._backlog_bytes + arrival.num_bytes <= CACHE_BACKLOG_BYTES
        view = arrival.room.view[:] if room else memoryview(b"")  # stays when the arrival lets its memory go
        self._backlog_bytes += len(view)

        async def write() -> None:
            num_bytes = len(view)
            try:
                if num_bytes:
                    await self._in(self._redis_threads, lambda: redis.write(arrival.digest, view, holes))
            finally:
                view.release()
                self._backlog_bytes -= num_bytes
                if claim is not None:
                    await claim.drop()

        task = asyncio.create_task(write())
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    def _in(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(threads, work)


async def finished(future: asyncio.Future[T]) -> T:
    """The result of work in a thread. Cancelled meanwhile, it waits all the same: the thread writes to our memory."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not future.done():
            await asyncio.wait([future])
        raise


def _mismatch(arrival: Arrival) -> CorruptData:
    return CorruptData(f"{_named(arrival)} does not match its digest; {VERIFY}", reason="DIGEST_MISMATCH")


def _named(arrival: Arrival) -> str:
    return f"{arrival.expert} of pack {arrival.pack.manifest.model_id}"


def _there(arrival: Arrival, holes: Sequence[Hole]) -> list[int]:
    """Pieces that are in no hole."""
    missing = {hole.offset for hole in _cut(holes)}
    return [index for index, one in enumerate(pieces(arrival.num_bytes)) if one.offset not in missing]


def _cut(holes: Sequence[Hole]) -> list[Hole]:
    """Holes of whole pieces as one a piece."""
    return [
        Hole(start, min(PIECE_BYTES, hole.end - start))
        for hole in holes
        for start in range(hole.offset, hole.end, PIECE_BYTES)
    ]


def _runs_of(indices: Sequence[int]) -> list[list[int]]:
    """Pieces, ascending, in runs of neighbours that one read may fetch."""
    found: list[list[int]] = []
    for index in indices:
        if found and found[-1][-1] + 1 == index and len(found[-1]) < PIECES_A_READ:
            found[-1].append(index)
        else:
            found.append([index])
    return found
