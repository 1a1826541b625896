"""Brings what is missing of an arrival: Redis, another replica, object storage, each piece checked as it lands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import blake3
from premoe_dataplane.blob_cache import Wanted
from premoe_servicekit.faults import storage_fault

from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.filling.arrival import Arrival
from premoe_expert_store.filling.landing import Origin
from premoe_expert_store.filling.objects import ObjectReader, Reading
from premoe_expert_store.filling.trip import Trip
from premoe_expert_store.metrics import StoreMetrics
from premoe_runtime.formats.errors import CorruptData, PremoeError
from premoe_runtime.formats.pieces import PIECE_BYTES, Hole, pieces, runs

T = TypeVar("T")

VERIFY = "run premoe pack verify"
PIECES_A_READ = 8
"""Of object storage at once: just below 8 MiB."""
CACHE_BACKLOG_BYTES = 128 << 20
"""Bytes waiting to be cached beyond which blobs are not cached: a slow cache must not hold memory."""
WRITE_BYTES = PIECE_BYTES * 4

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
        threads: int,
        wrong_copy: WrongCopy,
        metrics: StoreMetrics,
    ) -> None:
        self._objects = objects
        self._redis = redis
        self._redis_threads = ThreadPoolExecutor(threads, thread_name_prefix="redis")
        self._hashing = ThreadPoolExecutor(4, thread_name_prefix="hashing")
        self._wrong_copy = wrong_copy
        self._metrics = metrics
        self._writes: set[asyncio.Task[None]] = set()
        self._backlog_bytes = 0

    async def fill(self, arrival: Arrival, trip: Trip) -> None:
        """Returns when all of it is there and right, not yet under its name. Raises PremoeError."""
        forgotten = await self._from_redis(arrival, trip)
        holes = [Hole(0, arrival.num_bytes)] if forgotten else runs(arrival.landing.missing, arrival.num_bytes)
        await self._from_objects(arrival, trip)
        if not await self.is_right(arrival):
            holes = [Hole(0, arrival.num_bytes)]
            await self._all_anew(arrival, trip)
        self._write_through(arrival, holes)

    async def is_right(self, arrival: Arrival) -> bool:
        """Whether the whole matches its digest."""
        view = arrival.room.view
        return await finished(self._in(self._hashing, lambda: blake3.blake3(view).hexdigest() == arrival.digest))

    def hasten(self, arrival: Arrival) -> None:
        """Somebody waits for it now."""
        path, start = arrival.pack.place(arrival.expert)
        self._objects.hasten(path, start, start + arrival.num_bytes)

    async def close(self) -> None:
        """Wait for what is being cached, then let the threads go."""
        if self._writes:
            await asyncio.wait(self._writes)
        for threads in (self._redis_threads, self._hashing):
            threads.shutdown(cancel_futures=True)

    async def _from_redis(self, arrival: Arrival, trip: Trip) -> bool:
        """Whether Redis had wrong bytes, and so nothing is left there."""
        redis = self._redis
        if redis is None or not redis.available:
            return False

        def read() -> tuple[list[int], list[int]]:
            (holes,) = redis.read([Wanted(arrival.digest, arrival.room.view)])
            missing = {hole.offset for hole in _cut(holes)}
            there = [index for index, one in enumerate(pieces(arrival.num_bytes)) if one.offset not in missing]
            right, wrong = arrival.sort_out(there)
            if wrong:
                redis.forget(arrival.digest, arrival.num_bytes)
            return right, wrong

        with trip.asking("redis") as gain:
            right, wrong = await finished(self._in(self._redis_threads, read))
            arrival.land(right, "redis")
            gain.num_bytes = arrival.landing.there_bytes
            gain.blobs = not arrival.landing.missing
        self._metrics.asked_cache(blobs=1, hits=gain.blobs, num_bytes=gain.num_bytes)
        if wrong:
            await self._wrong_copy(arrival, "redis")
        return bool(wrong)

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
            into = arrival.room.view[hole.offset : hole.end]
            reading = self._objects.read(
                path,
                start + hole.offset,
                into,
                partial(arrival.sort_out, indices),
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
        for origin in mixed:
            await self._wrong_copy(arrival, origin)
        if mixed:
            arrival.lose_all()
            await self._from_objects(arrival, trip)
        if not mixed or not await self.is_right(arrival):
            await self._wrong_copy(arrival, "object")
            raise _mismatch(arrival)

    def _write_through(self, arrival: Arrival, holes: Sequence[Hole]) -> None:
        """Cache a checked blob in the background, unless too much is waiting already."""
        redis = self._redis
        if redis is None or not holes or self._backlog_bytes + arrival.num_bytes > CACHE_BACKLOG_BYTES:
            return
        view = arrival.room.view[:]  # stays when the arrival lets its memory go
        self._backlog_bytes += arrival.num_bytes

        async def write() -> None:
            try:
                await self._in(self._redis_threads, lambda: redis.write(arrival.digest, view, holes))
            finally:
                view.release()
                self._backlog_bytes -= arrival.num_bytes

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
