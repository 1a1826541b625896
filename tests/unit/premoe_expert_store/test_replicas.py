"""Several replicas over one object store: one read for all of them, whoever dies, and right bytes in any split."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from premoe_dataplane.plan import Scheme
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.transports.base import Landed, Part
from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.cache import NodeCache, given_folder
from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.shelf import Shelf
from premoe_servicekit.metrics import Metrics
from support.blob_pack import BlobPack, write_blob_pack
from support.gated_store import GatedStore
from support.memory_cache import MemoryCache
from support.metrics import read

from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, piece

BLOB = 3 << 20
A, B = ExpertId(0, 1), ExpertId(1, 3)


class MemoryClaims:
    """Implements Claims for all replicas of a test. ``now`` is moved by hand."""

    def __init__(self) -> None:
        self.claim_s = 3600.0
        self.now = 0.0
        self.owners: dict[str, tuple[str, float]] = {}
        self.taken = 0
        self.error: Unavailable | None = None

    def take(self, digest: str) -> str | None:
        if self.error is not None:
            raise self.error
        if digest in self.owners and self.owners[digest][1] > self.now:
            return None
        self.taken += 1
        token = str(self.taken)
        self.owners[digest] = (token, self.now + self.claim_s)
        return token

    def prolong(self, digest: str, token: str) -> bool:
        return self.owners.get(digest, ("", 0.0))[0] == token

    def drop(self, digest: str, token: str) -> None:
        if self.prolong(digest, token):
            del self.owners[digest]

    def close(self) -> None: ...


class Line:
    """Implements Transport: the way to another replica, as its byte server would answer."""

    scheme: Scheme = "http"

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.other: Shelf | None = None
        self.pack: Pack | None = None
        self.flip = -1
        """Byte that is flipped on the way."""
        self.asked = 0
        self.dead = False

    def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        for part in parts:
            self.asked += 1
            if self.dead:
                raise Unavailable("connection refused")
            for index in part.pieces:
                future = asyncio.run_coroutine_threadsafe(self._piece(part, index), self.loop)
                while not future.done():
                    if stopped():
                        future.cancel()
                        raise Stopped
                    time.sleep(0.002)
                at = piece(index, part.blob.num_bytes)
                part.into[at.offset : at.end] = future.result()
                landed(part, index)

    async def _piece(self, part: Part, index: int) -> bytes:
        assert self.other is not None
        assert self.pack is not None
        async with self.other.hold(self.pack, part.blob.expert, purpose="peer") as blob:
            at = piece(index, blob.num_bytes)
            await blob.landed(at.end)
            data = bytearray(blob.read(at.offset, at.length))
        if at.offset <= self.flip < at.end:
            data[self.flip - at.offset] ^= 1
        return bytes(data)

    def close(self) -> None: ...


class Replicas:
    """Shelves over one store, each with a node cache of its own; one Redis for those that are told of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = GatedStore(folder / "store")
        self.blobs: BlobPack = write_blob_pack(self.store, blob_bytes=BLOB)
        self.redis = MemoryCache(1 << 30)
        self.claims = MemoryClaims()
        self.shelves: list[Shelf] = []
        self.metrics: list[Metrics] = []

    async def pack(self) -> Pack:
        return await Catalogue(self.store).pack("")

    def shelf(self, *, redis: bool = False, claim_wait_s: float = 60.0) -> Shelf:
        self.metrics.append(Metrics())
        made = Shelf(
            self.store,
            NodeCache(given_folder(self.folder / f"cache-{len(self.shelves)}"), 1 << 30),
            GuardedCache(self.redis) if redis else None,
            claims=self.claims if redis else None,
            claim_wait_s=claim_wait_s,
            threads=4,
            metrics=StoreMetrics(self.metrics[-1]),
        )
        self.shelves.append(made)
        return made

    async def homes(self, first: bool, second: bool) -> tuple[Line, Line]:
        """Two shelves, of which each takes the other for the home of all blobs where its flag says so."""
        lines = Line(), Line()
        for line, own, other, asks in zip(lines, self.shelves, reversed(self.shelves), (first, second), strict=True):
            line.other, line.pack = other, await self.pack()
            own.ask_homes(lambda pack, expert, asks=asks: "http://other/blob" if asks else None, line)  # type: ignore[misc]
        return lines

    def count(self, replica: int, name: str, **labels: str) -> float:
        return read(self.metrics[replica]).value(f"premoe:{name}_total", **labels)


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[Replicas]:
    made = Replicas(tmp_path)
    yield made
    made.store.gate.set()
    for shelf in made.shelves:
        await shelf.close()


async def get(shelf: Shelf, pack: Pack, expert: ExpertId) -> bytes:
    async with shelf.hold(pack, expert) as blob:
        await blob.landed(blob.num_bytes)
        return blob.read(0, blob.num_bytes)


async def test_one_replica_reads_for_all_that_have_a_redis(replicas: Replicas) -> None:
    pack, shelves = await replicas.pack(), [replicas.shelf(redis=True) for _ in range(4)]
    found = await asyncio.gather(*(get(shelf, pack, one) for shelf in shelves for one in (A, B)))
    assert found == [replicas.blobs.blobs[one] for one in (A, B)] * 4
    assert replicas.store.read_bytes == 2 * BLOB
    for shelf in replicas.shelves:
        await shelf.close()
    replicas.shelves.clear()
    assert replicas.claims.owners == {}


async def test_who_owns_a_claim_and_dies_is_followed_by_another(replicas: Replicas) -> None:
    pack, shelf = await replicas.pack(), replicas.shelf(redis=True)
    assert replicas.claims.take(replicas.blobs.manifest.digest(A))
    waiting = asyncio.create_task(get(shelf, pack, A))
    await asyncio.sleep(0.05)
    assert replicas.store.reads == []
    replicas.claims.now = 1e9
    assert await waiting == replicas.blobs.blobs[A]
    assert replicas.store.read_bytes == BLOB


async def test_nobody_waits_for_ever_for_a_slow_owner(replicas: Replicas) -> None:
    pack, shelf = await replicas.pack(), replicas.shelf(redis=True, claim_wait_s=0.05)
    token = replicas.claims.take(replicas.blobs.manifest.digest(A))
    assert await get(shelf, pack, A) == replicas.blobs.blobs[A]
    assert replicas.claims.owners[replicas.blobs.manifest.digest(A)][0] == token, "it is not ours to give back"


async def test_claims_that_cannot_be_had_cost_a_read_each(replicas: Replicas) -> None:
    pack, shelves = await replicas.pack(), [replicas.shelf(redis=True) for _ in range(2)]
    replicas.claims.error = Unavailable("no Redis")
    assert await asyncio.gather(*(get(shelf, pack, A) for shelf in shelves)) == [replicas.blobs.blobs[A]] * 2
    assert replicas.store.read_bytes <= 2 * BLOB


async def test_a_failed_owner_gives_its_claim_back(replicas: Replicas) -> None:
    pack, shelf = await replicas.pack(), replicas.shelf(redis=True)
    replicas.store.error = Unavailable("503")
    with pytest.raises(Unavailable):
        await get(shelf, pack, A)
    assert replicas.claims.owners == {}


async def test_a_blob_comes_from_its_home_which_reads_once(replicas: Replicas) -> None:
    pack, shelves = await replicas.pack(), [replicas.shelf() for _ in range(2)]
    await replicas.homes(False, True)
    found = await asyncio.gather(*(get(shelf, pack, A) for shelf in shelves))
    assert found == [replicas.blobs.blobs[A]] * 2
    assert replicas.store.read_bytes == BLOB
    while any(shelf.held for shelf in shelves):  # noqa: ASYNC110  what is waited for tells nobody
        await asyncio.sleep(0.005)
    assert replicas.count(1, "store_read_bytes", source="peer") == BLOB
    assert replicas.count(1, "store_read_bytes", source="object") == 0


async def test_two_that_take_each_other_for_the_home_read_twice_and_do_not_wait(replicas: Replicas) -> None:
    pack, shelves = await replicas.pack(), [replicas.shelf() for _ in range(2)]
    await replicas.homes(True, True)
    found = await asyncio.gather(*(get(shelf, pack, one) for shelf in shelves for one in (A, B)))
    assert found == [replicas.blobs.blobs[one] for one in (A, B)] * 2
    assert replicas.store.read_bytes <= 4 * BLOB


async def test_a_dead_home_is_asked_once(replicas: Replicas) -> None:
    pack, shelf, _ = await replicas.pack(), replicas.shelf(), replicas.shelf()
    line, _ = await replicas.homes(True, False)
    line.dead = True
    assert [await get(shelf, pack, one) for one in (A, B)] == [replicas.blobs.blobs[one] for one in (A, B)]
    assert line.asked == 1


@pytest.mark.parametrize("sums", [True, False], ids=["by sums", "by digest"])
async def test_wrong_bytes_of_a_peer_are_not_used(replicas: Replicas, sums: bool) -> None:
    if not sums:
        replicas.store.delete(replicas.blobs.path("checks.safetensors"))
    pack, shelf, _ = await replicas.pack(), replicas.shelf(), replicas.shelf()
    line, _ = await replicas.homes(True, False)
    line.flip = PIECE_BYTES + 3
    assert await get(shelf, pack, A) == replicas.blobs.blobs[A]
    assert replicas.count(0, "store_wrong_copies", tier="peer") == 1
