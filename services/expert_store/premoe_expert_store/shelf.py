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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from premoe_dataplane.plan import Tier
from premoe_dataplane.transports.base import Transport
from premoe_servicekit.deadlines import no_deadline
from premoe_servicekit.faults import storage_fault
from premoe_servicekit.metrics import Metrics

from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.cache import NodeCache
from premoe_expert_store.catalogue import Pack
from premoe_expert_store.filling import Arrival, ObjectReader, Origin
from premoe_expert_store.filling.claims import Claims
from premoe_expert_store.filling.filler import CLAIM_WAIT_S, VERIFY, Filler
from premoe_expert_store.filling.peer import HomeUrl, PeerTier
from premoe_expert_store.filling.rooms import ROOM_WAIT_S, Rooms
from premoe_expert_store.filling.trip import Trip
from premoe_expert_store.held import HeldBlob
from premoe_expert_store.leases import Lease, Leases
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.negatives import Key, Negatives
from premoe_expert_store.ports import Counts, Event, Progress, Purpose
from premoe_expert_store.prefetching import Prefetching
from premoe_expert_store.tending import SCRUB_BYTES_S, Tending
from premoe_expert_store.watching import Watchers
from premoe_runtime.formats.errors import CorruptData, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.packs.place import MANIFEST_FILE
from premoe_runtime.storage import Store

LINGER_S = 1.0
"""How long an arrival goes on that nobody holds: who reads a blob in several ranges holds it several times."""
log = logging.getLogger(__name__)


class _Copy:
    """An arrival, or a blob that is here, and how many hold it."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.holders = 0
        self.task: asyncio.Task[None] | None = None
        self.left = False

    @property
    def key(self) -> Key:
        return (self.arrival.pack.folder, self.arrival.digest)

    @property
    def in_memory(self) -> bool:
        """Whether it takes memory beside the cache."""
        return self.arrival.has_room and self.arrival.room.memory_bytes > 0

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
        self._rooms = Rooms(cache, memory_bytes, room_wait_s)
        self._leases = Leases(300.0) if leases is None else leases
        self._watchers = Watchers()
        self._tending = Tending(store, cache, redis, self._found_wrong, scrub_bytes_s)
        self._metrics.show_node(cache)
        self._linger_s = linger_s
        self._clock = clock
        self._copies: dict[Key, _Copy] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._negatives = Negatives(clock)
        self._prefetching = Prefetching(cache, partial(self.hold, purpose="prefetch"), self._is_under_way)
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
        return self._rooms.memory_free_bytes

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
            if recheck and copy.arrival.landing.right and not await self._rooms.still_right(copy.arrival):
                await self._wrong_copy(copy.arrival, "node")
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
        return self._prefetching.want(pack, experts)

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
        await self._tending.close()
        await self._prefetching.close()
        for copy in list(self._copies.values()):
            self._end_soon(copy)
        while tasks := {*self._ending, *self._looks}:
            await asyncio.wait(tasks)
        await self._filler.close()
        self._objects.close()
        await self._rooms.close()

    def _join(self, pack: Pack, expert: ExpertId, purpose: Purpose, trip: Trip | None) -> _Copy:
        """The copy of a blob, now held once more. Raises what was found wrong with it a moment ago."""
        key = (pack.folder, pack.manifest.digest(expert))
        self._tending.know(pack)
        copy = self._copies.get(key)
        if copy is None:
            self._negatives.check(key)
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
        elif copy.in_memory or not self._linger_s:
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
        await self._rooms.take_back(copy.arrival)
        self._cache.let_go(copy.arrival.digest)

    async def _bring(self, copy: _Copy, trip: Trip | None) -> None:
        arrival, of_all = copy.arrival, trip is not None
        trip = trip or Trip()
        try:
            found = await self._rooms.found(arrival)
            if found is None:
                await self._wrong_copy(arrival, "node")
            if not found:
                await self._rooms.make(arrival)
                await self._filler.fill(arrival, trip)
                arrival.finish()
                await self._rooms.keep(arrival)
            self._metrics.handed_out(arrival.landing.origin)
        except PremoeError as error:
            self._failed(copy, error)
        except OSError as error:
            where = "memory" if copy.in_memory else f"cache folder {self._cache.folder}"
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
            self._negatives.add(key, error)

    def _is_under_way(self, pack: Pack, expert: ExpertId) -> bool:
        return (pack.folder, pack.manifest.digest(expert)) in self._copies

    async def _wrong_copy(self, arrival: Arrival, origin: Origin) -> None:
        """A tier had wrong bytes: drop them there, count, tell."""
        if origin == "node":
            await self._rooms.drop(arrival.digest)
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
