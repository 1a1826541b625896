"""Blobs held, brought and let go: many who want one, faults of every tier, and what is left afterwards."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.cache import NodeCache, given_folder
from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.filling.rooms import ROOM_WAIT_S
from premoe_expert_store.held import HeldBlob
from premoe_expert_store.leases import Leases
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.ports import BlobsInvalid, PackGone, Progress
from premoe_expert_store.shelf import LINGER_S, Shelf
from premoe_servicekit.metrics import Metrics
from support.blob_pack import DATA_OFFSET, BlobPack, write_blob_pack
from support.gated_store import GatedStore
from support.memory_cache import MemoryCache
from support.metrics import read

from premoe_runtime.formats.errors import CorruptData, Exhausted, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, Hole
from premoe_runtime.storage import LocalStore

LONG = (12 << 20) - (32 << 10)
"""12 pieces: two reads of object storage."""
A, B, C = ExpertId(0, 1), ExpertId(1, 3), ExpertId(0, 2)


class Bench:
    """A pack in a store, and a shelf over a folder that outlives it."""

    def __init__(self, folder: Path, **pack: int) -> None:
        self.folder = folder
        self.store = GatedStore(folder / "store")
        self.blobs: BlobPack = write_blob_pack(self.store, **pack)
        self.redis = MemoryCache(1 << 30)
        self.now = 0.0
        self.shelves: list[Shelf] = []

    async def pack(self) -> Pack:
        return await Catalogue(self.store).pack("")

    def shelf(
        self,
        *,
        redis: bool = False,
        node: int = 1 << 30,
        memory: int = 1,
        cache: str = "cache",
        linger_s: float = LINGER_S,
        room_wait_s: float = ROOM_WAIT_S,
    ) -> Shelf:
        leases = Leases(60.0)
        self.metrics = Metrics()
        made = Shelf(
            self.store,
            NodeCache(given_folder(self.folder / cache), node, leased=leases.holds),
            GuardedCache(self.redis) if redis else None,
            threads=4,
            memory_bytes=memory,
            leases=leases,
            metrics=StoreMetrics(self.metrics),
            room_wait_s=room_wait_s,
            linger_s=linger_s,
            clock=lambda: self.now,
        )
        self.shelves.append(made)
        return made

    def count(self, name: str, **labels: str) -> float:
        return read(self.metrics).value(f"premoe:{name}_total", **labels)

    def file(self, expert: ExpertId) -> Path:
        return self.shelves[-1].cache.path(self.blobs.manifest.digest(expert))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, blob_bytes=LONG)
    await made.pack()
    before = len(os.listdir("/proc/self/fd"))
    yield made
    made.store.gate.set()
    for shelf in made.shelves:
        await shelf.close()
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors are left"


async def whole(blob: HeldBlob) -> bytes:
    await blob.landed(blob.num_bytes)
    return blob.read(0, blob.num_bytes)


async def get(shelf: Shelf, pack: Pack, expert: ExpertId) -> tuple[bytes, str]:
    async with shelf.hold(pack, expert) as blob:
        return await whole(blob), blob.tier


async def until(reached: Callable[[], object]) -> None:
    while not reached():  # noqa: ASYNC110  what is waited for tells nobody
        await asyncio.sleep(0.005)


async def settled(shelf: Shelf) -> None:
    """Returns once nothing is held or let go any more."""
    await until(lambda: not shelf.held)


async def test_a_blob_may_be_read_while_it_arrives(bench: Bench) -> None:
    shelf, pack = bench.shelf(), await bench.pack()
    start = DATA_OFFSET + A.expert * LONG
    bench.store.gate.clear()
    async with shelf.hold(pack, A) as blob:
        assert (blob.landed_bytes, blob.path, blob.whole) == (0, None, False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await blob.landed(1)
        assert os.fstat(blob.fd).st_size == LONG
        bench.store.gate.set()
        await blob.landed(LONG)
        assert blob.read(0, LONG) == bench.blobs.blobs[A]
        assert {offset for _, offset, _ in bench.store.reads} == {start, start + 8 * PIECE_BYTES}
    await settled(shelf)
    async with shelf.hold(pack, A) as blob:
        assert (blob.path, blob.tier, blob.whole) == (bench.file(A), "node", True)


async def test_the_first_pieces_are_readable_before_the_last_are_there(bench: Bench) -> None:
    shelf, pack = bench.shelf(), await bench.pack()
    bench.store.gate.clear()
    late = DATA_OFFSET + A.expert * LONG + 8 * PIECE_BYTES

    real = bench.store.read_range

    def read_range(path: str, offset: int, length: int) -> memoryview:
        if offset != late:
            return LocalStore.read_range(bench.store, path, offset, length)
        return real(path, offset, length)

    bench.store.read_range = read_range  # type: ignore[method-assign]
    async with shelf.hold(pack, A) as blob:
        await blob.landed(8 * PIECE_BYTES)
        assert blob.landed_bytes == 8 * PIECE_BYTES
        assert blob.read(0, 8 * PIECE_BYTES) == bench.blobs.blobs[A][: 8 * PIECE_BYTES]
        bench.store.gate.set()
        assert await whole(blob) == bench.blobs.blobs[A]


async def test_a_blob_without_sums_is_readable_when_it_is_whole(bench: Bench) -> None:
    bench.store.delete(bench.blobs.path("checks.safetensors"))
    shelf, pack = bench.shelf(), await bench.pack()
    assert pack.sums(A) == ()
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")


async def test_many_who_want_a_blob_cause_one_read(bench: Bench) -> None:
    shelf, pack = bench.shelf(), await bench.pack()
    found = await asyncio.gather(*(get(shelf, pack, A) for _ in range(64)))
    assert {data for data, _ in found} == {bench.blobs.blobs[A]}
    assert bench.store.read_bytes == LONG
    await settled(shelf)
    assert bench.count("store_blobs", tier="object") == 1


async def test_an_arrival_ends_when_nobody_holds_it_and_begins_anew(bench: Bench) -> None:
    shelf, pack = bench.shelf(linger_s=0.0), await bench.pack()
    bench.store.gate.clear()

    async def leave(holders: int) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(holders):
                await stack.enter_async_context(shelf.hold(pack, A))

    await asyncio.gather(leave(1), leave(3))
    bench.store.gate.set()
    await settled(shelf)
    assert not shelf.cache.holds(bench.blobs.manifest.digest(A))
    assert shelf.cache.num_bytes == 0
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")


async def test_an_arrival_goes_on_while_anybody_holds_it(bench: Bench) -> None:
    shelf, pack = bench.shelf(linger_s=0.0), await bench.pack()
    bench.store.gate.clear()
    async with shelf.hold(pack, A) as first:
        second = asyncio.create_task(get(shelf, pack, A))
        await asyncio.sleep(0.02)
        second.cancel()
        await asyncio.wait([second])
        bench.store.gate.set()
        assert await whole(first) == bench.blobs.blobs[A]
    assert bench.store.read_bytes == LONG


async def test_who_comes_back_soon_finds_the_arrival_still_going(bench: Bench) -> None:
    shelf, pack = bench.shelf(linger_s=30.0), await bench.pack()
    bench.store.gate.clear()
    async with shelf.hold(pack, A):
        pass
    bench.store.gate.set()
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")
    assert bench.store.read_bytes == LONG


async def test_an_error_is_that_of_one_blob_and_is_kept_for_a_second(bench: Bench) -> None:
    path = bench.blobs.layer_path(A.layer)
    data = bytearray(bench.store.get(path))
    data[DATA_OFFSET + A.expert * LONG + 100] ^= 1
    bench.store.put(path, bytes(data))
    shelf, pack = bench.shelf(), await bench.pack()
    results = await asyncio.gather(*(get(shelf, pack, one) for one in (A, A, C)), return_exceptions=True)
    assert [type(one) for one in results[:2]] == [CorruptData, CorruptData]
    assert results[2] == (bench.blobs.blobs[C], "object")
    reads = len(bench.store.reads)
    with pytest.raises(CorruptData, match=r"layer 0 expert 1 of pack \w+ does not match its digest"):
        await get(shelf, pack, A)
    assert len(bench.store.reads) == reads
    data[DATA_OFFSET + A.expert * LONG + 100] ^= 1
    bench.store.put(path, bytes(data))
    bench.now = 1.5
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")
    assert bench.count("store_wrong_copies", tier="object") == 1


async def test_a_store_that_is_away_is_asked_again_at_once(bench: Bench) -> None:
    shelf, pack = bench.shelf(), await bench.pack()
    bench.store.error = Unavailable("503 SlowDown")
    with pytest.raises(Unavailable, match="does not answer"):
        await get(shelf, pack, A)
    bench.store.error = None
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")


async def test_a_flipped_bit_on_the_node_is_found_at_the_first_use_after_a_restart(bench: Bench) -> None:
    pack = await bench.pack()
    shelf = bench.shelf()
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")
    await settled(shelf)
    flip(bench.file(A), 100)
    shelf = bench.shelf()
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")
    assert bench.count("store_wrong_copies", tier="node") == 1
    await settled(shelf)
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "node")


@pytest.mark.parametrize("sums", [True, False], ids=["by sums", "by digest"])
async def test_who_checks_nothing_has_it_checked(bench: Bench, sums: bool) -> None:
    if not sums:
        bench.store.delete(bench.blobs.path("checks.safetensors"))
    pack, shelf = await bench.pack(), bench.shelf()
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")
    await settled(shelf)
    flip(bench.file(A), LONG - 1)
    async with shelf.hold(pack, A, recheck=True) as blob:
        assert await whole(blob) == bench.blobs.blobs[A]
    assert bench.count("store_wrong_copies", tier="node") == 1


@pytest.mark.parametrize("sums", [True, False], ids=["by sums", "by digest"])
async def test_a_flipped_bit_in_redis_costs_one_piece_or_the_blob(bench: Bench, sums: bool) -> None:
    if not sums:
        bench.store.delete(bench.blobs.path("checks.safetensors"))
    pack, shelf = await bench.pack(), bench.shelf(redis=True)
    digest, bad = bench.blobs.manifest.digest(A), bytearray(bench.blobs.blobs[A])
    bad[PIECE_BYTES + 5] ^= 1
    bench.redis.write(digest, memoryview(bad), [Hole(0, LONG)])
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")
    assert bench.store.read_bytes == (PIECE_BYTES if sums else LONG)
    assert bench.count("store_wrong_copies", tier="redis") == 1
    await shelf.close()
    bench.shelves.clear()
    assert await get(bench.shelf(redis=True, cache="other"), pack, A) == (bench.blobs.blobs[A], "redis")


async def test_watchers_hear_of_wrong_copies_and_progress(bench: Bench) -> None:
    pack, shelf = await bench.pack(), bench.shelf(redis=True)
    bad = bytearray(bench.blobs.blobs[A])
    bad[5] ^= 1
    bench.redis.write(bench.blobs.manifest.digest(A), memoryview(bad), [Hole(0, LONG)])
    events = shelf.watch(pack)
    first = await anext(events)
    await get(shelf, pack, A)
    seen = [first]
    while seen[-1] != Progress(1, 0, 0, 0):
        seen.append(await anext(events))
    await events.aclose()
    assert seen[0] == Progress(0, 0, 0, 0)
    assert BlobsInvalid((A,), "redis") in seen


@pytest.mark.parametrize("stored", ["gone", "another"])
async def test_watchers_hear_when_a_pack_is_gone(bench: Bench, stored: str) -> None:
    pack, shelf = await bench.pack(), bench.shelf()
    events = shelf.watch(pack)
    await anext(events)
    bench.store.delete_prefix(f"models/{bench.blobs.model_id}")
    if stored == "another":
        bench.store.put(bench.blobs.path("manifest.json"), b"{}")
    with pytest.raises(CorruptData, match="is missing in the object store; run premoe pack verify"):
        await get(shelf, pack, A)
    async for event in events:
        if isinstance(event, PackGone):
            assert ("is gone from the object store" if stored == "gone" else "another pack lies") in event.message
            break
    await events.aclose()


async def test_without_room_in_the_cache_blobs_lie_in_memory_within_a_bound(bench: Bench) -> None:
    pack, shelf = await bench.pack(), bench.shelf(node=1, memory=2 * LONG, room_wait_s=0.05)
    async with shelf.hold(pack, A) as one, shelf.hold(pack, B) as two:
        assert [await whole(one), await whole(two)] == [bench.blobs.blobs[A], bench.blobs.blobs[B]]
        assert (one.path, shelf.memory_free_bytes) == (None, 0)
        with pytest.raises(Exhausted, match="no room for another blob") as caught:
            await get(shelf, pack, C)
        assert caught.value.reason == "NO_ROOM"
        assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")
    await settled(shelf)
    assert shelf.memory_free_bytes == 2 * LONG


async def test_prefetched_blobs_come_and_cost_no_better_ones(bench: Bench) -> None:
    pack, shelf = await bench.pack(), bench.shelf(node=3 * LONG)
    await get(shelf, pack, A)
    await settled(shelf)
    shelf.cache.favour({bench.blobs.manifest.digest(A): 1.0})
    others = [ExpertId(1, expert) for expert in range(4)]
    assert shelf.prefetch(pack, [A, *others]) == (1, 2, 2)
    await until(lambda: all(shelf.present(pack, others[:2])))
    assert shelf.present(pack, [A, *others]) == [True, True, True, False, False]
    assert shelf.prefetch(pack, [A, *others[:2]]) == (3, 0, 0)


async def test_what_is_prefetched_is_read_once_with_who_comes_to_wait(bench: Bench) -> None:
    pack, shelf = await bench.pack(), bench.shelf()
    bench.store.gate.clear()
    assert shelf.prefetch(pack, [A]) == (0, 1, 0)
    assert shelf.prefetch(pack, [A]) == (0, 1, 0)
    waiting = asyncio.create_task(get(shelf, pack, A))
    await asyncio.sleep(0.02)
    assert shelf.progress(pack).under_way == 1
    bench.store.gate.set()
    assert await waiting == (bench.blobs.blobs[A], "object")
    assert bench.store.read_bytes == LONG


async def test_neighbours_are_read_together(tmp_path: Path) -> None:
    bench = Bench(tmp_path, experts=16)
    pack, shelf = await bench.pack(), bench.shelf()
    shelf.prefetch(pack, [])
    async with AsyncExitStack() as stack:
        holds = [shelf.hold(pack, ExpertId(0, expert)) for expert in range(16)]
        blobs = await asyncio.gather(*(stack.enter_async_context(hold) for hold in holds))
        assert [await whole(blob) for blob in blobs] == [bench.blobs.blobs[ExpertId(0, expert)] for expert in range(16)]
    assert bench.store.read_bytes == 16 * 8192
    await shelf.close()


async def test_closing_ends_what_arrives(bench: Bench) -> None:
    pack, shelf = await bench.pack(), bench.shelf()
    bench.store.gate.clear()
    waiting = asyncio.create_task(get(shelf, pack, A))
    shelf.prefetch(pack, [B, C])
    await asyncio.sleep(0.02)
    waiting.cancel()
    closing = asyncio.create_task(shelf.close())
    await asyncio.sleep(0.02)
    bench.store.gate.set()
    await closing
    bench.shelves.clear()
    assert shelf.held == 0


def flip(path: Path, at: int) -> None:
    """Flip a bit of a file, which nobody may write to."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


async def test_a_disk_that_breaks_while_a_blob_arrives_is_one_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shelf, pack = bench.shelf(), await bench.pack()

    write = os.pwrite

    def broken(fd: int, data: bytes, offset: int) -> int:
        if len(data) > PIECE_BYTES:
            raise OSError(errno.EIO, "Input/output error")
        return write(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", broken)
        with pytest.raises(Unavailable, match="cannot be kept while it is read: Input/output error"):
            async with shelf.hold(pack, A) as blob:
                await blob.landed(LONG)
    await settled(shelf)
    assert "Traceback" not in caplog.text
    assert await get(shelf, pack, A) == (bench.blobs.blobs[A], "object")


async def test_the_loop_turns_while_room_is_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, pack = bench.shelf(), await bench.pack()
    allocating, go, allocate = threading.Event(), threading.Event(), os.posix_fallocate

    def slow(fd: int, offset: int, length: int) -> None:
        allocating.set()
        go.wait(30)
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", slow)
    waiting = asyncio.create_task(get(shelf, pack, A))
    await until(allocating.is_set)
    assert shelf.prefetch(pack, [B]) == (0, 1, 0)
    assert shelf.present(pack, [A, B]) == [False, False]
    go.set()
    assert await waiting == (bench.blobs.blobs[A], "object")
