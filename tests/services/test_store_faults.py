"""Shelves over a real Redis and a real S3 that fail: right bytes or a clear failure, in bounded time, nothing left."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis
from premoe_dataplane.redis_cache import RedisCache
from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.cache import NodeCache, given_folder
from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.filling.claims import RedisClaims
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.shelf import Shelf
from premoe_servicekit.metrics import Metrics
from support.blob_pack import DATA_OFFSET, BlobPack, write_blob_pack
from support.gated_store import GatedStore
from support.metrics import read
from support.servers import RedisServer, redis_server, s3_server, start_again, stop

from premoe_runtime.formats.errors import CorruptData, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES
from premoe_runtime.storage import Store, open_store

BLOB = 3 << 20
EVERYTHING = [ExpertId(layer, expert) for layer in range(2) for expert in range(4)]
A = EVERYTHING[0]
CLAIM_MS = 5000
BOUND_S = 60.0
"""Nothing takes longer, however slow the machine: what hangs fails."""


class Bench:
    """Shelves over one store and one Redis, a node cache each."""

    def __init__(self, folder: Path, store: Store, url: str | None) -> None:
        self.folder, self.store, self.url = folder, store, url
        self.blobs: BlobPack = write_blob_pack(store, blob_bytes=BLOB)
        self.made: list[tuple[Shelf, GuardedCache | None]] = []
        self.metrics: list[Metrics] = []

    async def pack(self) -> Pack:
        return await Catalogue(self.store).pack("")

    def shelf(self) -> Shelf:
        cache = GuardedCache(RedisCache(self.url, timeout_s=1.0), cool_down_s=0.05) if self.url else None
        self.metrics.append(Metrics())
        shelf = Shelf(
            self.store,
            NodeCache(given_folder(self.folder / f"cache-{len(self.metrics)}"), 1 << 30),
            cache,
            claims=RedisClaims(self.url, claim_ms=CLAIM_MS) if self.url else None,
            metrics=StoreMetrics(self.metrics[-1]),
        )
        self.made.append((shelf, cache))
        return shelf

    async def fetch(self, shelf: Shelf, *experts: ExpertId) -> None:
        """All of them at once, and right. Raises what they raise."""
        pack = await self.pack()
        async with asyncio.timeout(BOUND_S):
            found = await asyncio.gather(*(get(shelf, pack, one) for one in experts))
        assert found == [self.blobs.blobs[one] for one in experts]

    async def close(self) -> None:
        for shelf, cache in self.made:
            await shelf.close()
            if cache is not None:
                cache.close()
        self.made.clear()

    def count(self, name: str, **labels: str) -> float:
        return sum(read(one).value(f"premoe:{name}_total", **labels) for one in self.metrics)


async def get(shelf: Shelf, pack: Pack, expert: ExpertId) -> bytes:
    async with shelf.hold(pack, expert) as blob:
        await blob.landed(blob.num_bytes)
        return await asyncio.to_thread(blob.read, 0, blob.num_bytes)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(folder) as running:
        yield running


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
async def bench(tmp_path: Path, server: RedisServer) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, GatedStore(tmp_path / "store"), server.url)
    yield made
    await made.close()


async def filled(bench: Bench) -> None:
    """All blobs are in Redis, as a store that has ended left them."""
    await bench.fetch(bench.shelf(), *EVERYTHING)
    await bench.close()


async def test_four_stores_read_each_object_once(bench: Bench, raw: redis.Redis) -> None:
    shelves = [bench.shelf() for _ in range(4)]
    await asyncio.gather(*(bench.fetch(shelf, *EVERYTHING) for shelf in shelves))
    assert isinstance(bench.store, GatedStore)
    assert bench.store.read_bytes == len(EVERYTHING) * BLOB
    await bench.close()
    assert list(raw.scan_iter("premoe:claim:*")) == []


async def test_a_claim_of_a_store_that_was_killed_ends(bench: Bench, raw: redis.Redis) -> None:
    raw.set(f"premoe:claim:{bench.blobs.manifest.digest(A)}", "of the dead", nx=True, px=300)
    await bench.fetch(bench.shelf(), A)
    assert bench.count("store_read_bytes", source="object") == BLOB


async def renewed(raw: redis.Redis, key: str, *, times: int) -> None:
    """Wait until a key has been given more time so often."""
    left = raw.pttl(key)
    async with asyncio.timeout(BOUND_S):
        while times:
            await asyncio.sleep(0.05)
            before, left = left, raw.pttl(key)
            times -= left > before


async def test_a_claim_is_kept_up_while_its_blob_is_read(bench: Bench, raw: redis.Redis) -> None:
    assert isinstance(bench.store, GatedStore)
    bench.store.gate.clear()
    shelf, other = bench.shelf(), bench.shelf()
    key = f"premoe:claim:{bench.blobs.manifest.digest(A)}"
    first = asyncio.create_task(bench.fetch(shelf, A))
    while not bench.store.reads:  # noqa: ASYNC110  what is waited for tells nobody
        await asyncio.sleep(0.01)
    owner = raw.get(key)
    second = asyncio.create_task(bench.fetch(other, A))
    await renewed(raw, key, times=2)
    assert raw.get(key) == owner
    assert len(bench.store.reads) == 1
    bench.store.gate.set()
    await asyncio.gather(first, second)
    assert bench.store.read_bytes == BLOB


async def test_a_bit_flipped_in_redis_costs_one_piece_and_is_mended(bench: Bench, raw: redis.Redis) -> None:
    await filled(bench)
    key = f"premoe:blob:{bench.blobs.manifest.digest(A)}:1"
    raw.setrange(key, 77, bytes([bench.blobs.blobs[A][PIECE_BYTES + 77] ^ 4]))
    before = bench.count("store_read_bytes", source="object")
    await bench.fetch(bench.shelf(), *EVERYTHING)
    assert bench.count("store_read_bytes", source="object") - before == PIECE_BYTES
    assert bench.count("store_wrong_copies", tier="redis") == 1
    await bench.close()
    before = bench.count("store_read_bytes", source="object")
    await bench.fetch(bench.shelf(), *EVERYTHING)
    assert bench.count("store_read_bytes", source="object") == before


async def test_an_evicted_piece_is_read_alone(bench: Bench, raw: redis.Redis) -> None:
    await filled(bench)
    raw.delete(f"premoe:blob:{bench.blobs.manifest.digest(A)}:2")
    before = bench.count("store_read_bytes", source="object")
    await bench.fetch(bench.shelf(), A)
    assert bench.count("store_read_bytes", source="object") - before == PIECE_BYTES


async def test_a_full_redis_is_not_missed(bench: Bench, raw: redis.Redis) -> None:
    raw.config_set("maxmemory", 1 << 20)
    await bench.fetch(bench.shelf(), *EVERYTHING)
    await bench.close()
    assert bench.count("store_read_bytes", source="object") == len(EVERYTHING) * BLOB


async def test_a_redis_that_dies_and_comes_back_empty_is_filled_again(bench: Bench, server: RedisServer) -> None:
    await filled(bench)
    server.process.kill()
    server.process.wait()
    await bench.fetch(bench.shelf(), *EVERYTHING)
    again = start_again(server)
    try:
        await filled(bench)
        with redis.Redis.from_url(again.url) as client:
            assert len(list(client.scan_iter("premoe:blob:*"))) == len(EVERYTHING) * 4
    finally:
        stop(again.process)


async def test_a_redis_that_answers_slowly_does_not_hold_up_for_long(bench: Bench, raw: redis.Redis) -> None:
    await filled(bench)
    raw.execute_command("CLIENT", "PAUSE", 30_000, "ALL")
    await bench.fetch(bench.shelf(), *EVERYTHING)
    with (
        pytest.raises(redis.TimeoutError),
        redis.Redis(port=raw.get_connection_kwargs()["port"], socket_timeout=0.1) as other,
    ):
        other.ping()


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder whose files are the objects of the bucket."""
    folder = tmp_path / "gateway"
    folder.mkdir()
    with s3_server(folder) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server.root / server.bucket


async def test_objects_that_are_cut_or_replaced_are_one_line_each(tmp_path: Path, s3: Path) -> None:
    bench = Bench(tmp_path, open_store("s3://test"), None)
    shelf = bench.shelf()
    await bench.fetch(shelf, A)
    cut, replaced = s3 / bench.blobs.layer_path(0), s3 / bench.blobs.layer_path(1)
    os.truncate(cut, DATA_OFFSET + 2 * BLOB)
    replaced.write_bytes(bytes(DATA_OFFSET + 4 * BLOB))
    for expert, why in (
        (ExpertId(0, 3), "is damaged in the object store"),
        (ExpertId(1, 0), "does not match its digest"),
    ):
        with pytest.raises(CorruptData, match=why) as caught:
            await bench.fetch(shelf, expert)
        assert len(str(caught.value).splitlines()) == 1
    await bench.fetch(shelf, A, ExpertId(0, 1))
    await bench.close()


class _Storm(BaseHTTPRequestHandler):
    """S3 that answers SlowDown ``left`` times before it serves the file."""

    left = 0
    asked = 0
    data = b""

    def do_GET(self) -> None:
        kind = type(self)
        kind.asked += "/experts/" in self.path
        if kind.left > 0:
            kind.left -= 1
            self._answer(503, b"<Error><Code>SlowDown</Code></Error>", "")
            return
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        self._answer(206, kind.data[first : last + 1], f"bytes {first}-{last}/{len(kind.data)}")

    def _answer(self, status: int, body: bytes, content_range: str) -> None:
        self.send_response(status)
        if content_range:
            self.send_header("Content-Range", content_range)
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.mark.parametrize("storm", [2, 1 << 30], ids=["a short one", "without end"])
async def test_a_storm_of_slow_down_is_waited_out_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storm: int
) -> None:
    plain = GatedStore(tmp_path / "store")
    blobs = write_blob_pack(plain, blob_bytes=BLOB)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Storm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _Storm.left, _Storm.asked, _Storm.data = storm, 0, plain.get(blobs.layer_path(0))
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    shelf = Shelf(open_store("s3://test"), NodeCache(given_folder(tmp_path / "cache"), 1 << 30), scrub_bytes_s=0)
    pack = await Catalogue(plain).pack("")
    try:
        async with asyncio.timeout(BOUND_S):
            if storm == 2:
                assert await get(shelf, pack, A) == blobs.blobs[A]
                return
            with pytest.raises(Unavailable, match="does not answer"):
                await get(shelf, pack, A)
            assert _Storm.asked <= 6
    finally:
        await shelf.close()
        server.shutdown()
        server.server_close()


async def test_an_s3_that_is_gone_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gateway"
    folder.mkdir()
    with s3_server(folder) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        bench = Bench(tmp_path, open_store("s3://test"), None)
        shelf, pack = bench.shelf(), await bench.pack()
        server.process.kill()
        server.process.wait()
        async with asyncio.timeout(BOUND_S):
            results = await asyncio.gather(*(get(shelf, pack, one) for one in EVERYTHING), return_exceptions=True)
        assert all(isinstance(one, Unavailable) for one in results)
        assert issubclass(Unavailable, PremoeError)
        await bench.close()
