"""The one door to blobs: held while they are read, and brought, once for all who want them, when they are not here.

async with shelf.hold(pack, expert) as blob:
    await blob.landed(end)
    os.sendfile(out, blob.fd, 0, end)
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

from premoe_dataplane.plan import Tier
from premoe_dataplane.transports.base import Transport
from premoe_servicekit.deadlines import no_deadline
from premoe_servicekit.faults import storage_fault
from premoe_servicekit.metrics import Metrics

from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.budget import ByteBudget
from premoe_expert_store.cache import Draft, NodeCache, Opened
from premoe_expert_store.cache.whole import digest_of, is_right
from premoe_expert_store.catalogue import Pack
from premoe_expert_store.filling import Arrival, ObjectReader, Origin, Room
from premoe_expert_store.filling.claims import Claims
from premoe_expert_store.filling.filler import CLAIM_WAIT_S, VERIFY, Filler, finished
from premoe_expert_store.filling.peer import HomeUrl, PeerTier
from premoe_expert_store.filling.trip import Trip
from premoe_expert_store.held import HeldBlob
from premoe_expert_store.leases import Lease, Leases
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.ports import Counts, Event, Progress, Purpose
from premoe_expert_store.tending import SCRUB_BYTES_S, Tending
from premoe_expert_store.watching import Watchers
from premoe_runtime.formats.errors import CorruptData, Exhausted, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.packs.place import MANIFEST_FILE
from premoe_runtime.storage import Store

T = TypeVar("T")

NEGATIVE_S = 1.0
"""How long a blob that is missing or wrong in object storage is not looked for again."""
MOST_NEGATIVES = 65_536
LINGER_S = 1.0
"""How long an arrival goes on that nobody holds: who reads a blob in several ranges holds it several times."""
PREFETCHES = 8
"""Blobs that nobody waits for, on their way at a time."""
ROOM_WAIT_S = 30.0
"""How long a reader waits for memory when the cache has no room, before it is told so."""
FILE_THREADS = 4

log = logging.getLogger(__name__)


_Key = tuple[str, str]
"""A pack's folder and a digest: an error is that of one pack's copy."""


class _Copy:
    """An arrival, or a blob that is here, and how many hold it."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.holders = 0
        self.task: asyncio.Task[None] | None = None
        self.memory_bytes = 0
        self.left = False

    @property
    def key(self) -> _Key:
        return (self.arrival.pack.folder, self.arrival.digest)

    @property
    def almost_there(self) -> bool:
        """Whether all has landed: only its check and its name are missing."""
        return self.arrival.has_room and not self.arrival.landing.missing

    @property
    def under_way(self) -> bool:
        return self.task is not None and not self.task.done()


class Shelf:
    """Implements ``ports.Shelf``. Belongs to one event loop; files, sums and reads are worked on in a few threads."""

    def __init__(
        self,
        store: Store,
        cache: NodeCache,
        redis: GuardedCache | None = None,
        *,
        claims: Claims | None = None,
        claim_wait_s: float = CLAIM_WAIT_S,
        threads: int = 16,
        memory_bytes: int = 512 << 20,
        leases: Leases | None = None,
        metrics: StoreMetrics | None = None,
        room_wait_s: float = ROOM_WAIT_S,
        linger_s: float = LINGER_S,
        scrub_bytes_s: float = SCRUB_BYTES_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``claims``: in the same Redis, so that one replica reads an object for all; others wait ``claim_wait_s``.

        ``threads``: reads of object storage at a time, and as many of Redis, and of other replicas.

        ``scrub_bytes_s``: of copies that lie still, looked at in the background; 0: none are.

        ``memory_bytes``: of blobs for which the cache has no room. ``leases``: those that the cache was told of.
        """
        self._store = store
        self._cache = cache
        self._redis = redis
        self._metrics = metrics or StoreMetrics(Metrics())
        self._objects = ObjectReader(store, threads)
        self._filler = Filler(
            self._objects,
            redis,
            claims=claims,
            claim_wait_s=claim_wait_s,
            threads=threads,
            wrong_copy=self._wrong_copy,
            metrics=self._metrics,
        )
        self._threads = threads
        self._memory = ByteBudget(memory_bytes)
        self._leases = Leases(300.0) if leases is None else leases
        self._watchers = Watchers()
        self._tending = Tending(store, cache, redis, self._found_wrong, scrub_bytes_s)
        self._metrics.show_node(cache)
        self._files = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files")
        self._room_wait_s = room_wait_s
        self._linger_s = linger_s
        self._clock = clock
        self._copies: dict[_Key, _Copy] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._negatives: dict[_Key, tuple[float, PremoeError]] = {}
        self._wanted: deque[tuple[Pack, ExpertId]] = deque()
        self._fetching: dict[_Key, None] = {}
        self._prefetchers: set[asyncio.Task[None]] = set()
        self._looks: set[asyncio.Task[None]] = set()
        self._present: dict[str, tuple[int, int]] = {}
        """Blobs of a pack that are here, and the version of the cache for which they were counted."""

    def ask_homes(self, home: HomeUrl, transport: Transport) -> None:
        """From now on a blob's home is asked before object storage: ``home`` gives its signed address there.

        The address must make that replica hold the blob for purpose ``peer``, or two that believe each other to be its
        home would wait for one another. ``transport`` reads scheme http, is closed with the shelf, and checks nothing.
        """
        self._filler.ask_peers(PeerTier(home, transport, self._threads, clock=self._clock))

    @property
    def cache(self) -> NodeCache:
        return self._cache

    @property
    def memory_free_bytes(self) -> int:
        """Of what may lie in memory for want of room in the cache."""
        return self._memory.free_bytes

    @property
    def held(self) -> int:
        """Blobs that somebody holds, or that are on their way or being let go."""
        return len(self._copies) + len(self._ending)

    @property
    def arriving(self) -> int:
        """Blobs on their way."""
        return sum(not copy.arrival.done for copy in self._copies.values())

    @asynccontextmanager
    async def hold(
        self,
        pack: Pack,
        expert: ExpertId,
        *,
        purpose: Purpose = "demand",
        recheck: bool = False,
        trip: Trip | None = None,
    ) -> AsyncIterator[HeldBlob]:
        """Hold a blob, which begins to arrive unless it is here or on its way. Enters once there is room for it.

        ``pack`` has the expert (``Pack.check_experts``). With ``recheck`` a blob that is here is read and held against
        its digest first: for readers who check nothing themselves. ``trip`` is that of all blobs of a request.

        An arrival goes on while anybody holds it and is cancelled when nobody does. Whoever holds several blobs must
        be able to read and let go those held before while it waits to enter the next one: room may be what it waits
        for. Raises NotFound, CorruptData, Unavailable, PremoeError (as ``HeldBlob.landed``) and Exhausted, when all
        memory is held by others for long.
        """
        copy = self._join(pack, expert, purpose, trip)
        try:
            await copy.arrival.roomy()
            if recheck and not await self._still_right(copy):
                self._leave(copy)
                copy = self._join(pack, expert, purpose, trip)
                await copy.arrival.roomy()
            yield HeldBlob(copy.arrival)
        finally:
            self._leave(copy)

    def opened(self, pack: Pack, expert: ExpertId) -> int | None:
        """A descriptor of a blob that lies in the node cache and was held against its digest, which the caller closes.

        None: hold it. Quick: one file is opened and nothing is waited for. The file outlives its name.
        """
        digest = pack.manifest.digest(expert)
        found = self._cache.open(digest, pack.blob_bytes) if self._cache.holds(digest) else None
        if found is None:
            return None
        if not found.checked:
            os.close(found.fd)
            return None
        self._metrics.handed_out("node")
        return found.fd

    def present(self, pack: Pack, experts: Iterable[ExpertId]) -> list[bool]:
        """Which blobs are whole in the node cache now, as far as is known without looking. Quick; does not block."""
        return [self._cache.holds(pack.manifest.digest(expert)) for expert in experts]

    def prefetch(self, pack: Pack, experts: Sequence[ExpertId]) -> Counts:
        """Begin to bring blobs for which nobody waits. Does not wait, and raises nothing for those that fail.

        Refused are those for which the cache would have to drop blobs that are worth more.
        """
        keys = {(pack.folder, pack.manifest.digest(expert)): expert for expert in experts}
        missing = [key for key in keys if not self._cache.holds(key[1])]
        new = [key for key in missing if key not in self._copies and key not in self._fetching]
        taken = new[: self._fits(pack, new)] if new else []
        for key in taken:
            self._fetching[key] = None
            self._wanted.append((pack, keys[key]))
        while len(self._prefetchers) < min(PREFETCHES, len(self._wanted)):
            task = asyncio.create_task(self._prefetch())
            self._prefetchers.add(task)
            task.add_done_callback(self._prefetchers.discard)
        refused = len(new) - len(taken)
        return Counts(len(keys) - len(missing), len(missing) - refused, refused)

    def lease(self, pack: Pack, experts: Iterable[ExpertId]) -> Lease:
        """Lease blobs: they go last when the cache makes room. A hint: they need not be here, and may go."""
        return self._leases.grant([pack.manifest.digest(expert) for expert in experts])

    def renew(self, lease_id: str) -> float:
        """Prolong a lease; its new end. Raises NotFound (LEASE_ENDED)."""
        return self._leases.renew(lease_id).expires_at

    def release(self, lease_id: str) -> None:
        """End a lease; one that has ended is no error."""
        self._leases.release(lease_id)

    def watch(self, pack: Pack) -> AsyncGenerator[Event, None]:
        """What happens to a pack, until closed (``aclosing``); first of all its progress. A slow watcher loses none."""
        return self._watchers.watch(pack.folder, lambda: self.progress(pack))

    def progress(self, pack: Pack) -> Progress:
        """What is here of a pack, and what is on its way."""
        version, present = self._present.get(pack.folder, (-1, 0))
        if version != self._cache.version:
            version = self._cache.version
            present = sum(map(self._cache.holds, (digest for one in pack.manifest.layers for digest in one.digests)))
            self._present[pack.folder] = (version, present)
        under_way = [
            copy.arrival
            for (folder, _), copy in self._copies.items()
            if folder == pack.folder and not copy.arrival.done
        ]
        arrived = sum(arrival.landing.there_bytes for arrival in under_way)
        return Progress(present, len(under_way), arrived, len(under_way) * pack.blob_bytes)

    async def read_file(self, pack: Pack, path: str, offset: int, length: int) -> bytes:
        """A range of one of the pack's files. Raises as ``hold`` does."""
        try:
            return await self._objects.run(lambda: self._store.get_range(f"{pack.folder}/{path}", offset, length))
        except PremoeError as error:
            raise storage_fault(f"{path} of pack {pack.manifest.model_id}", error, VERIFY) from error

    async def close(self) -> None:
        """Cancel what arrives, wait for what is written to Redis, and let threads and cache go."""
        self._wanted.clear()
        await self._tending.close()
        for prefetcher in self._prefetchers:
            prefetcher.cancel()
        for copy in list(self._copies.values()):
            self._end_soon(copy)
        while tasks := {*self._ending, *self._prefetchers, *self._looks}:
            await asyncio.wait(tasks)
        await self._filler.close()
        self._objects.close()
        await self._in_thread(self._cache.close)
        self._files.shutdown()

    def _join(self, pack: Pack, expert: ExpertId, purpose: Purpose, trip: Trip | None) -> _Copy:
        """The copy of a blob, now held once more. Raises what was found wrong with it a moment ago."""
        key = (pack.folder, pack.manifest.digest(expert))
        self._tending.know(pack)
        copy = self._copies.get(key)
        if copy is None:
            self._raise_negative(key)
            arrival = Arrival(pack, expert, urgent=purpose != "prefetch", alone=purpose == "peer")
            copy = self._copies[key] = _Copy(arrival)
            self._cache.hold(arrival.digest)
            with no_deadline():
                copy.task = asyncio.create_task(self._bring(copy, trip))
        elif purpose != "prefetch" and not copy.arrival.urgent:
            copy.arrival.urgent = True
            self._filler.hasten(copy.arrival)
        if purpose == "peer":
            copy.arrival.alone.set()
        copy.holders += 1
        return copy

    def _leave(self, copy: _Copy) -> None:
        copy.holders -= 1
        if copy.holders or copy.left:
            return
        if not copy.under_way:
            self._end_soon(copy)
        elif copy.almost_there:
            # Who comes now joins it.
            assert copy.task is not None
            copy.task.add_done_callback(lambda _: self._end_unheld(copy))
        elif copy.memory_bytes or not self._linger_s:
            self._end_soon(copy)
        else:
            asyncio.get_running_loop().call_later(self._linger_s, self._end_unheld, copy)

    def _end_unheld(self, copy: _Copy) -> None:
        if not copy.holders:
            self._end_soon(copy)

    def _end_soon(self, copy: _Copy) -> None:
        if copy.left:
            return
        copy.left = True
        # Taken off first: who comes now must not join an arrival that is being cancelled.
        if self._copies.get(copy.key) is copy:
            del self._copies[copy.key]
        ending = asyncio.create_task(self._end(copy))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, copy: _Copy) -> None:
        """Give everything back once nothing is under way for it."""
        if copy.task is not None and not copy.task.done():
            if not copy.almost_there:
                copy.task.cancel()
            await asyncio.wait([copy.task])
        copy.task = None
        arrival = copy.arrival
        if arrival.has_room:
            await self._in_thread(arrival.room.close)
        self._memory.give(copy.memory_bytes)
        self._cache.let_go(arrival.digest)

    async def _bring(self, copy: _Copy, trip: Trip | None) -> None:
        arrival, of_all = copy.arrival, trip is not None
        trip = trip or Trip()
        try:
            if not await self._from_node(arrival):
                await self._make_room(copy)
                await self._filler.fill(arrival, trip)
                arrival.finish()
                await finished(self._in_thread(lambda: arrival.room.keep(arrival.digest)))
            self._metrics.handed_out(arrival.landing.origin)
        except PremoeError as error:
            self._failed(copy, error)
        except OSError as error:
            where = "memory" if copy.memory_bytes else f"cache folder {self._cache.folder}"
            log.error("%s: %s", where, error.strerror)
            message = f"{arrival.expert} cannot be kept while it is read: {error.strerror}; see the log of the store"
            self._failed(copy, Unavailable(message, reason="CACHE_FAILED"))
        except Exception as error:
            log.exception("a blob could not be brought")
            self._failed(copy, PremoeError(f"{arrival.expert} could not be read: {error}"))
        finally:
            if not of_all:
                trip.close()
            if arrival.has_room:
                arrival.room.unmap()

    def _failed(self, copy: _Copy, error: PremoeError) -> None:
        error = type(error)(str(error), reason=error.reason)  # without a traceback, which would keep the blob's memory
        copy.arrival.fail(error)
        key = copy.key
        if self._copies.get(key) is copy:
            del self._copies[key]
        if isinstance(error, NotFound | CorruptData):
            look = asyncio.create_task(self._look_at_pack(copy.arrival.pack))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
            if len(self._negatives) >= MOST_NEGATIVES:
                self._negatives.clear()
            self._negatives[key] = (self._clock() + NEGATIVE_S, error)

    def _raise_negative(self, key: _Key) -> None:
        until, error = self._negatives.get(key, (0.0, None))
        if error is not None:
            if self._clock() < until:
                raise type(error)(str(error), reason=error.reason)
            del self._negatives[key]

    async def _from_node(self, arrival: Arrival) -> bool:
        """Whether the blob was in the node cache, and right."""
        digest = arrival.digest
        opened = await self._acquired(partial(self._cache.open, digest, arrival.num_bytes), _close_file)
        if opened is None:
            return False
        room = Room.of_file(opened.fd, arrival.num_bytes, self._cache.path(digest))
        right = opened.checked
        try:
            # What another process wrote, or another life of this one, is not taken on trust.
            right = right or await self._digest_of(room) == digest
        finally:
            if not right:
                room.close()
        if not right:
            await self._wrong_copy(arrival, "node")
            return False
        self._cache.checked(digest)
        arrival.give(room)
        arrival.finish()
        return True

    async def _digest_of(self, room: Room) -> str:
        return await finished(self._in_thread(lambda: digest_of(room.fd, room.num_bytes)))

    async def _make_room(self, copy: _Copy) -> None:
        arrival = copy.arrival
        draft = None
        for polite in (True, False):
            if draft is None and polite != arrival.urgent:
                draft = await self._acquired(
                    partial(self._cache.draft, arrival.digest, arrival.num_bytes, polite=polite), self._abandon
                )
        if draft is not None:
            arrival.give(Room.of_draft(self._cache, draft))
            return
        if not arrival.urgent:
            raise Exhausted("the cache has no room for blobs that nobody waits for", reason="NO_ROOM")
        try:
            async with asyncio.timeout(self._room_wait_s):
                copy.memory_bytes = await self._memory.take(arrival.num_bytes)
        except TimeoutError:
            raise Exhausted(
                "no room for another blob: cache and memory are held by those who read; give the store more of either",
                reason="NO_ROOM",
            ) from None
        arrival.give(await self._acquired(lambda: Room.in_memory(arrival.num_bytes), Room.close))

    async def _still_right(self, copy: _Copy) -> bool:
        """Whether a blob that is here has the bytes of its digest. One that has not is dropped."""
        arrival = copy.arrival
        if not arrival.landing.right:
            return True
        fd = arrival.room.fd
        if await finished(self._in_thread(lambda: is_right(fd, arrival.num_bytes, arrival.digest, arrival.sums))):
            return True
        await self._wrong_copy(arrival, "node")
        return False

    async def _prefetch(self) -> None:
        while self._wanted:
            pack, expert = self._wanted.popleft()
            with suppress(PremoeError):
                async with self.hold(pack, expert, purpose="prefetch") as blob:
                    await blob.landed(blob.num_bytes)
            self._fetching.pop((pack.folder, pack.manifest.digest(expert)), None)

    def _fits(self, pack: Pack, keys: Sequence[_Key]) -> int:
        """For how many more of these blobs, which nobody waits for, there is room."""
        waiting = len(self._fetching)
        return max(0, self._cache.would_fit(keys[0][1], pack.blob_bytes, len(keys) + waiting) - waiting)

    async def _acquired(self, work: Callable[[], T], undo: Callable[[T], object]) -> T:
        """What ``work`` gets in a thread; undone when nobody is there any more to take it."""
        future = self._in_thread(work)
        try:
            return await finished(future)
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                got = future.result()
                await self._in_thread(lambda: undo(got))
            raise

    def _abandon(self, draft: Draft | None) -> None:
        if draft is not None:
            Room.of_draft(self._cache, draft).close()

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._files, work)

    async def _wrong_copy(self, arrival: Arrival, origin: Origin) -> None:
        """A tier had wrong bytes: drop them there, count, tell."""
        if origin == "node":
            await self._in_thread(lambda: self._cache.drop(arrival.digest))
        self._found_wrong(arrival.pack, arrival.expert, origin)

    def _found_wrong(self, pack: Pack, expert: ExpertId, origin: Origin) -> None:
        """Count and tell of a wrong copy, which is dropped."""
        tier: Tier = "node" if origin == "peer" else origin
        held = self._copies.get((pack.folder, pack.manifest.digest(expert)))
        if origin == "node" and held is not None and held.arrival.landing.right:
            del self._copies[held.key]  # nobody else is to join it
        log.warning("%s of pack %s: its copy from %s is wrong and not used", expert, pack.manifest.model_id, origin)
        self._metrics.wrong_copy(origin)
        self._watchers.invalid(pack.folder, expert, tier)

    async def _look_at_pack(self, pack: Pack) -> None:
        """Tell watchers when the pack is gone, or another lies under its name."""
        path, model_id = f"{pack.folder}/{MANIFEST_FILE}", pack.manifest.model_id
        if not self._watchers.any(pack.folder):
            return
        try:
            same = await self._objects.run(lambda: self._store.get(path)) == pack.document
        except NotFound:
            self._watchers.gone(pack.folder, f"pack {model_id} is gone from the object store")
        except PremoeError as error:
            log.debug("%s: %s", path, error)
        else:
            if not same:
                self._watchers.gone(pack.folder, f"another pack lies where pack {model_id} was")


def _close_file(opened: Opened | None) -> None:
    if opened is not None:
        os.close(opened.fd)
