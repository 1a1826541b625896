from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from premoe_dataplane.frames import FRAME_BYTES
from premoe_dataplane.signing import Signer
from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.cache import NodeCache, private_folder
from premoe_expert_store.catalogue import Catalogue
from premoe_expert_store.leases import Leases
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.ports import Progress
from premoe_expert_store.service import ExpertStore
from premoe_expert_store.shelf import Shelf
from premoe_expert_store.sources import Ways
from premoe_servicekit.metrics import Metrics
from support.blob_pack import DATA_OFFSET, BlobPack, write_blob_pack
from support.gated_store import GatedStore
from support.memory_cache import MemoryCache
from support.metrics import read

from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, Hole
from premoe_runtime.packs.checks import piece_checks
from premoe_runtime.storage import Store, open_store

BLOB = 3 << 20
"""Three whole pieces and a short one."""


_made: list[Shelf] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Shelves of a test end with it, and their folders."""
    yield
    while _made:
        await _made.pop().close()


class Bench:
    """A store, a pack in it, and the service over an empty node cache."""

    def __init__(
        self,
        store: Store,
        *,
        cache: MemoryCache | None = None,
        window: int = 1,
        node: int = 1 << 30,
        memory: int = 1 << 30,
        **pack: int,
    ) -> None:
        self.store = store
        self.pack: BlobPack = write_blob_pack(store, **pack)
        self.cache = cache
        self.metrics = Metrics()
        self.now = 0.0
        self.node = NodeCache(private_folder(node), node)
        self.leases = Leases(60.0)
        self.shelf = Shelf(
            store,
            self.node,
            GuardedCache(cache) if cache is not None else None,
            threads=4,
            memory_bytes=memory,
            metrics=StoreMetrics(self.metrics),
            leases=self.leases,
            linger_s=0.0,
            clock=lambda: self.now,
        )
        _made.append(self.shelf)
        ways = Ways(Signer(lambda: (b"k" * 32,)), "http://here:80", redis=cache is not None)
        self.service = ExpertStore(Catalogue(store), self.shelf, ways, window_bytes=window)

    async def fetch(self, *experts: ExpertId, model_id: str = "") -> list[tuple[bytes, str]]:
        """The blobs, put together from frames whose order and sizes are checked, and the tiers of their last ones."""
        found: list[tuple[bytearray, str]] = []
        async with aclosing(self.service.fetch(model_id, experts)) as frames:
            async for frame in frames:
                if frame.offset == 0:
                    found.append((bytearray(), ""))
                data, _ = found[frame.index]
                assert frame.index == len(found) - 1
                assert frame.offset == len(data)
                assert 0 < len(frame.data) <= FRAME_BYTES
                found[-1] = (data + frame.data, frame.tier)
        return [(bytes(data), tier) for data, tier in found]

    def expected(self, *experts: ExpertId, tier: str = "object") -> list[tuple[bytes, str]]:
        return [(self.pack.blobs[expert], tier) for expert in experts]

    def digest(self, expert: ExpertId) -> str:
        return self.pack.manifest.digest(expert)


@pytest.fixture
def store(tmp_path: Path) -> GatedStore:
    return GatedStore(tmp_path)


async def close(bench: Bench) -> None:
    _made.remove(bench.shelf)
    await bench.shelf.close()


async def until(reached: Callable[[], object]) -> None:
    while not reached():  # noqa: ASYNC110  what is waited for tells nobody
        await asyncio.sleep(0.005)


async def idle(bench: Bench) -> None:
    """Returns once everything is let go."""
    await until(lambda: not bench.shelf.held)


async def settle() -> None:
    """Let everybody get as far as they can: reads run in threads, so turns of the loop alone do not tell."""
    for _ in range(25):
        await asyncio.sleep(0.01)


A, B, C, D = ExpertId(0, 1), ExpertId(1, 3), ExpertId(0, 2), ExpertId(1, 0)


@pytest.mark.parametrize("window", [1, 20_000, 1 << 30], ids=["one by one", "in pairs", "all at once"])
async def test_blobs_come_in_the_order_asked_each_byte_once(store: GatedStore, window: int) -> None:
    bench = Bench(store, window=window)
    asked = (B, A, C, B, D)
    found = await bench.fetch(*asked)
    assert [data for data, _ in found] == [bench.pack.blobs[one] for one in asked]
    assert store.read_bytes == 4 * 8192
    await idle(bench)


async def test_what_was_fetched_comes_from_the_node_then(store: GatedStore) -> None:
    bench = Bench(store)
    assert await bench.fetch(A) == bench.expected(A)
    await idle(bench)
    assert await bench.fetch(A) == bench.expected(A, tier="node")
    assert store.read_bytes == 8192


async def test_long_blobs_are_read_in_short_ranges(store: GatedStore) -> None:
    bench = Bench(store, layers=1, experts=2, blob_bytes=20 << 20, window=1 << 30)
    asked = (ExpertId(0, 1), ExpertId(0, 0))
    assert await bench.fetch(*asked) == bench.expected(*asked, tier="object")
    assert max(length for _, _, length in store.reads) <= 8 << 20
    assert store.read_bytes == 40 << 20


async def test_the_cache_is_filled_and_then_used(store: GatedStore) -> None:
    bench = Bench(store, cache=MemoryCache(1 << 30), blob_bytes=BLOB)
    assert await bench.fetch(A, B) == bench.expected(A, B, tier="object")
    await close(bench)
    bench = Bench(store, cache=bench.cache, blob_bytes=BLOB)
    store.reads.clear()
    assert await bench.fetch(B, A) == bench.expected(B, A, tier="redis")
    assert store.reads == []


async def test_a_hole_is_read_from_the_object_alone(store: GatedStore) -> None:
    cache = MemoryCache(1 << 30)
    bench = Bench(store, cache=cache, blob_bytes=BLOB)
    blob = memoryview(bench.pack.blobs[A])
    cache.write(bench.digest(A), blob, [Hole(0, 1), Hole(2 * PIECE_BYTES, BLOB - 2 * PIECE_BYTES)])
    assert await bench.fetch(A) == bench.expected(A, tier="object")
    start = DATA_OFFSET + A.expert * BLOB
    assert store.reads == [(bench.pack.layer_path(0), start + PIECE_BYTES, PIECE_BYTES)]
    await close(bench)
    assert cache.holds([bench.digest(A)], BLOB) == [True]


@pytest.mark.parametrize("holes", [(), (Hole(0, 10),)], ids=["whole", "with a hole"])
async def test_corrupt_pieces_of_the_cache_never_leave_it(store: GatedStore, holes: tuple[Hole, ...]) -> None:
    cache = MemoryCache(1 << 30)
    bench = Bench(store, cache=cache, blob_bytes=BLOB)
    bad = bytearray(bench.pack.blobs[A])
    bad[-1] ^= 1
    kept = [Hole(0, BLOB)] if not holes else [Hole(PIECE_BYTES, BLOB - PIECE_BYTES)]
    cache.write(bench.digest(A), memoryview(bad), kept)
    assert await bench.fetch(A) == bench.expected(A, tier="object")
    await close(bench)
    bench = Bench(store, cache=cache, blob_bytes=BLOB)
    assert await bench.fetch(A) == bench.expected(A, tier="redis")


async def test_simultaneous_requests_share_a_read(store: GatedStore) -> None:
    bench = Bench(store, window=1 << 30)
    await bench.service.pack("")
    store.gate.clear()
    fetches = [asyncio.create_task(bench.fetch(A, B)) for _ in range(8)]
    await settle()
    store.gate.set()
    found = await asyncio.gather(*fetches)
    assert [[data for data, _ in one] for one in found] == [[bench.pack.blobs[A], bench.pack.blobs[B]]] * 8
    assert store.read_bytes == 2 * 8192


async def test_a_reader_that_leaves_lets_everything_go(store: GatedStore) -> None:
    bench = Bench(store, window=8192, node=2 * 8192, memory=1)
    for taken in range(4):
        async with aclosing(bench.service.fetch("", [A, B, C, D])) as frames:
            for _ in range(taken):
                await anext(frames)
    await idle(bench)
    assert bench.shelf.memory_free_bytes == 1
    # Which of them were kept on the way depends on how far they had come.
    assert [data for data, _ in await bench.fetch(A, B, C, D)] == [bench.pack.blobs[one] for one in (A, B, C, D)]


async def test_a_slow_reader_holds_two_windows_and_no_more(store: GatedStore) -> None:
    bench = Bench(store, experts=8, layers=8, window=2 * 8192)
    asked = [ExpertId(layer, expert) for layer in range(8) for expert in range(8)]
    async with aclosing(bench.service.fetch("", asked)) as frames:
        await anext(frames)
        await until(lambda: store.read_bytes == 4 * 8192)
        await settle()
        assert bench.shelf.held == 4
        assert store.read_bytes == 4 * 8192


@pytest.mark.parametrize("room", [(8192, 1), (1, 8192)], ids=["in the cache", "in memory"])
async def test_more_streams_than_room_all_end(store: GatedStore, room: tuple[int, int]) -> None:
    bench = Bench(store, window=8192, node=room[0], memory=room[1])
    results = await asyncio.gather(*(bench.fetch(A, B, C, D) for _ in range(10)))
    assert [[data for data, _ in one] for one in results] == [[bench.pack.blobs[one] for one in (A, B, C, D)]] * 10


async def test_a_cancelled_fetch_lets_everything_go(store: GatedStore) -> None:
    bench = Bench(store, window=8192, node=1, memory=2 * 8192)
    for yields in range(30):
        task = asyncio.create_task(bench.fetch(A, B, C, D))
        for _ in range(yields):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await idle(bench)
    assert bench.shelf.memory_free_bytes == 2 * 8192
    assert await bench.fetch(A, B) == bench.expected(A, B)


async def test_a_flipped_byte_is_corrupt_and_others_still_come(store: GatedStore) -> None:
    bench = Bench(store)
    path = bench.pack.layer_path(A.layer)
    data = bytearray(store.get(path))
    data[DATA_OFFSET + A.expert * 8192 + 100] ^= 1
    store.put(path, bytes(data))
    with pytest.raises(
        CorruptData, match=r"layer 0 expert 1 of pack \w+ does not match its digest; run premoe pack verify"
    ) as caught:
        await bench.fetch(A)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert await bench.fetch(C) == bench.expected(C, tier="object")
    broken, whole = await asyncio.gather(bench.fetch(A, D), bench.fetch(D), return_exceptions=True)
    assert isinstance(broken, CorruptData)
    assert whole == bench.expected(D)


async def test_corrupt_bytes_are_not_cached(store: GatedStore) -> None:
    cache = MemoryCache(1 << 30)
    bench = Bench(store, cache=cache)
    store.put(bench.pack.layer_path(0), bytes(DATA_OFFSET + 4 * 8192))
    with pytest.raises(CorruptData):
        await bench.fetch(A)
    await close(bench)
    assert cache.holds([bench.digest(A)], 8192) == [False]


async def test_a_truncated_object_is_corrupt(store: GatedStore) -> None:
    bench = Bench(store, window=1 << 30)
    path = bench.pack.layer_path(0)
    store.put(path, store.get(path)[: DATA_OFFSET + 2 * 8192 + 5])
    with pytest.raises(CorruptData, match="is damaged in the object store; run premoe pack verify") as caught:
        await bench.fetch(ExpertId(0, 0), C)
    assert caught.value.reason == "OBJECT_TRUNCATED"
    ((data, _),) = await bench.fetch(ExpertId(0, 0))
    assert data == bench.pack.blobs[ExpertId(0, 0)]


STORED: dict[str, tuple[Exception, type[PremoeError], str]] = {
    "missing": (NotFound("no such object", reason="OBJECT_NOT_FOUND"), CorruptData, "is missing"),
    "cut": (CorruptData("too short", reason="OBJECT_TRUNCATED"), CorruptData, "is damaged"),
    "refused": (InvalidInput("access refused", reason="ACCESS_REFUSED"), PremoeError, "the object store refuses"),
    "down": (Unavailable("s3 is down", reason="STORE_FAILED"), Unavailable, "does not answer"),
}


@pytest.mark.parametrize("case", STORED.values(), ids=STORED.keys())
async def test_faults_of_the_object_store_are_the_servers_and_tell_no_path(
    store: GatedStore, case: tuple[Exception, type[PremoeError], str], caplog: pytest.LogCaptureFixture
) -> None:
    error, kind, message = case
    bench = Bench(store)
    store.error = type(error)(f"{store.at(bench.pack.layer_path(0))}: {error}", reason=error.reason)  # type: ignore[call-arg,attr-defined]
    with pytest.raises(PremoeError, match=message) as caught:
        await bench.fetch(A)
    assert type(caught.value) is kind
    assert caught.value.reason == error.reason  # type: ignore[attr-defined]
    assert str(A) in str(caught.value)
    assert store.url not in str(caught.value)
    assert store.url in caplog.text
    store.error = None
    bench.now = 1.1
    assert await bench.fetch(A) == bench.expected(A, tier="object")


async def test_a_missing_file_of_a_pack_is_the_servers_fault(store: GatedStore) -> None:
    bench = Bench(store)
    path = "skeleton/config.json"
    store.delete(f"models/{bench.pack.manifest.model_id}/{path}")
    with pytest.raises(CorruptData, match=f"{path} of pack .* is missing") as caught:
        await read_file(bench, path)
    assert store.url not in str(caught.value)


async def test_what_does_not_exist_is_named() -> None:
    bench = Bench(open_store(f"memory://{uuid.uuid4()}"))
    with pytest.raises(NotFound, match=r"has no layer 2 expert 0; it has 2 layers of 4 experts") as expert:
        await bench.fetch(ExpertId(2, 0))
    with pytest.raises(NotFound, match="no pack 0000") as model:
        await bench.service.pack("0000")
    with pytest.raises(NotFound, match="no file 'skeleton/nothing'") as file:
        await read_file(bench, "skeleton/nothing")
    assert [one.value.reason for one in (expert, model, file)] == [
        "EXPERT_NOT_FOUND",
        "MODEL_NOT_FOUND",
        "FILE_NOT_FOUND",
    ]


@pytest.mark.parametrize("name", ["../sets", "a/b/c", "A/b", "a/", "/a", "", "x" * 200])
async def test_paths_cannot_be_made_of_ids(name: str, tmp_path: Path) -> None:
    service = Bench(open_store(str(tmp_path))).service
    if name:
        with pytest.raises(InvalidInput, match="is no id"):
            await service.pack(name)
    with pytest.raises(NotFound):
        async with aclosing(service.fetch_file("", "../" + name)) as frames:
            await anext(frames)


async def test_no_experts_or_too_many_are_refused() -> None:
    bench = Bench(open_store(f"memory://{uuid.uuid4()}"))
    with pytest.raises(InvalidInput, match="no experts"):
        await bench.service.resolve("", [])
    with pytest.raises(InvalidInput, match="at most"):
        await bench.service.resolve("", [A] * 70_000)


async def test_an_empty_model_id_needs_exactly_one_pack() -> None:
    store = open_store(f"memory://{uuid.uuid4()}")
    with pytest.raises(NotFound, match="no pack here"):
        await Catalogue(store).pack("")
    first = write_blob_pack(store, seed=1)
    assert (await Catalogue(store).pack("")).manifest == first.manifest
    store.put("models/half-written/skeleton/config.json", b"{}")
    assert (await Catalogue(store).pack("")).manifest == first.manifest
    write_blob_pack(store, seed=2)
    with pytest.raises(InvalidInput, match="holds 2 packs") as caught:
        await Catalogue(store).pack("")
    assert caught.value.reason == "MODEL_AMBIGUOUS"


async def test_a_manifest_under_another_name_is_corrupt() -> None:
    store = open_store(f"memory://{uuid.uuid4()}")
    pack = write_blob_pack(store)
    store.put("models/other/manifest.json", pack.manifest.to_json())
    store.put("models/broken/manifest.json", b"{}")
    for name in ("other", "broken"):
        with pytest.raises(CorruptData) as caught:
            await Catalogue(store).pack(name)
        assert caught.value.reason == "MANIFEST_INVALID"


async def test_resolve_names_what_is_here_and_asks_no_disk_and_no_store(store: GatedStore) -> None:
    bench = Bench(store, cache=MemoryCache(1 << 30))
    await bench.fetch(A)
    await idle(bench)
    store.reads.clear()
    plan = await bench.service.resolve(bench.pack.model_id, [B, A], ["http", "redis", "grpc"])
    assert [(blob.expert, blob.digest, blob.num_bytes) for blob in plan.blobs] == [
        (B, bench.digest(B), 8192),
        (A, bench.digest(A), 8192),
    ]
    assert [[(one.scheme, one.tier) for one in blob.sources] for blob in plan.blobs] == [
        [("grpc", "object"), ("http", "object"), ("redis", "redis")],
        [("grpc", "node"), ("http", "node"), ("redis", "redis")],
    ]
    assert plan.blobs[0].checks == piece_checks(bench.pack.blobs[B])
    assert store.reads == []


async def test_a_big_resolve_waits_for_nothing(store: GatedStore) -> None:
    """Once the pack is known, one turn of the loop answers, whatever the number of blobs."""
    bench = Bench(store)
    await bench.service.pack(bench.pack.model_id)
    resolving = bench.service.resolve(bench.pack.model_id, [A, B, C, D] * 500, ["http", "grpc"])
    with pytest.raises(StopIteration) as ended:
        resolving.send(None)
    assert len(ended.value.value.blobs) == 2000


async def test_leases_are_renewed_and_end(store: GatedStore) -> None:
    bench = Bench(store)
    plan = await bench.service.resolve("", [A, B])
    assert bench.leases.holds(bench.digest(A))
    assert bench.service.renew(plan.lease_id) >= plan.expires_at
    bench.service.release(plan.lease_id)
    bench.service.release(plan.lease_id)
    assert not bench.leases.holds(bench.digest(A))
    for ended in (plan.lease_id, "", "x.y", "ä"):
        with pytest.raises(NotFound) as caught:
            bench.service.renew(ended)
        assert caught.value.reason == "LEASE_ENDED"


async def test_a_prefetch_brings_blobs_and_a_watcher_sees_it(store: GatedStore) -> None:
    bench = Bench(store)
    store.gate.clear()
    async with aclosing(bench.service.watch("")) as events:
        assert await anext(events) == Progress(0, 0, 0, 0)
        assert await bench.service.prefetch("", [A, B]) == (0, 2, 0)
        assert await bench.service.prefetch("", [A, B]) == (0, 2, 0)
        store.gate.set()
        while await anext(events) != Progress(2, 0, 0, 0):
            pass
    assert await bench.service.prefetch("", [A, B, C]) == (2, 1, 0)


async def read_file(bench: Bench, path: str) -> bytes:
    async with aclosing(bench.service.fetch_file(bench.pack.model_id, path)) as frames:
        parts = [bytes(frame) async for frame in frames]
    assert all(0 < len(part) <= FRAME_BYTES for part in parts)
    return b"".join(parts)


@pytest.mark.parametrize("file_bytes", [0, 1, FRAME_BYTES, (17 << 20) + 3])
async def test_files_come_whole(store: GatedStore, file_bytes: int) -> None:
    bench = Bench(store, file_bytes=file_bytes)
    for path, data in bench.pack.files.items():
        assert await read_file(bench, path) == data


async def test_a_changed_or_shortened_file_is_corrupt(store: GatedStore) -> None:
    bench = Bench(store)
    path = bench.pack.path("skeleton/config.json")
    store.put(path, bytes(3 << 20))
    with pytest.raises(CorruptData, match="does not match its digest"):
        await read_file(bench, "skeleton/config.json")
    store.put(path, bytes(5))
    with pytest.raises(CorruptData, match="is damaged in the object store"):
        await read_file(bench, "skeleton/config.json")


async def test_bytes_are_counted_by_where_they_came_from(store: GatedStore) -> None:
    cache = MemoryCache(1 << 30)
    bench = Bench(store, cache=cache, window=1 << 30)
    await bench.fetch(A, B, A)
    await close(bench)
    again = Bench(store, cache=cache, window=1 << 30)
    await again.fetch(A, C)
    await idle(again)
    for each, (read_there, queries, hits, objects) in ((bench, (0, 2, 0, 2)), (again, (1, 2, 1, 1))):
        found = read(each.metrics)
        assert found.value("premoe:store_read_bytes_total", source="cache") == read_there * 8192
        assert found.value("premoe:store_read_bytes_total", source="object") == objects * 8192
        assert found.value("premoe:store_cache_queries_total") == queries
        assert found.value("premoe:store_cache_hits_total") == hits


async def test_bytes_that_could_not_be_read_are_not_counted(store: GatedStore) -> None:
    bench = Bench(store)
    store.error = Unavailable("away")
    with pytest.raises(Unavailable):
        await bench.fetch(A)
    assert read(bench.metrics).value("premoe:store_read_bytes_total") == 0
