"""One suite for every blob cache: the one in memory and Redis, on real servers of every arrangement."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import blake3
import pytest
import redis
from premoe_dataplane.blob_cache import BlobCache, Wanted
from premoe_dataplane.redis_cache import RedisCache
from support.memory_cache import MemoryCache
from support.redis_servers import RedisSet, cluster, several, with_sentinel, with_tls
from support.servers import RedisServer, redis_server

from premoe_runtime.formats.errors import Exhausted, InvalidInput, Unavailable
from premoe_runtime.formats.pieces import PIECE_BYTES, Hole, pieces

FAILOVER_S = 60.0
LONG = 3 * PIECE_BYTES + 777
"""Three whole pieces and a short one."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@contextmanager
def single(folder: Path) -> Iterator[RedisSet]:
    with redis_server(folder) as running:
        yield RedisSet(running.url, [running.url], [running.process])


SETS = {"redis": single, "several": several, "sentinel": with_sentinel, "cluster": cluster, "tls": with_tls}


@pytest.fixture(scope="module", params=["memory", *SETS])
def redis_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSet | None]:
    if request.param == "memory":
        yield None
        return
    with SETS[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def cache(redis_set: RedisSet | None) -> Iterator[BlobCache]:
    if redis_set is not None:
        redis_set.flush()
    made: BlobCache = MemoryCache(1 << 30) if redis_set is None else RedisCache(redis_set.url, timeout_s=5)
    yield made
    made.close()


def make_blob(num_bytes: int, seed: int = 0) -> tuple[str, memoryview]:
    data = random.Random(seed).randbytes(num_bytes)
    return blake3.blake3(data).hexdigest(), memoryview(data)


def everything(blob: memoryview) -> tuple[Hole, ...]:
    return (Hole(0, len(blob)),)


def read(cache: BlobCache, digest: str, num_bytes: int) -> tuple[bytes, tuple[Hole, ...]]:
    into = memoryview(bytearray(num_bytes))
    (holes,) = cache.read([Wanted(digest, into)])
    return bytes(into), holes


@pytest.mark.parametrize("num_bytes", [1, 4096, PIECE_BYTES, PIECE_BYTES + 1, LONG])
def test_what_was_written_is_read(cache: BlobCache, num_bytes: int) -> None:
    digest, blob = make_blob(num_bytes)
    cache.write(digest, blob, everything(blob))
    assert read(cache, digest, num_bytes) == (bytes(blob), ())
    assert cache.holds([digest], num_bytes) == [True]


def test_what_was_never_written_is_all_holes(cache: BlobCache) -> None:
    digest, _ = make_blob(LONG)
    data, holes = read(cache, digest, LONG)
    assert data == bytes(LONG)
    assert sum(hole.length for hole in holes) == LONG
    assert holes[0].offset == 0
    assert all(left.offset + left.length == right.offset for left, right in pairwise(holes))
    assert cache.holds([digest, digest], LONG) == [False, False]


def test_pieces_that_are_missing_are_holes_and_can_be_mended(cache: BlobCache) -> None:
    digest, blob = make_blob(LONG)
    second, last = Hole(PIECE_BYTES, PIECE_BYTES), Hole(3 * PIECE_BYTES, 777)
    cache.write(digest, blob, [Hole(0, 1), Hole(2 * PIECE_BYTES + 5, 10)])
    data, holes = read(cache, digest, LONG)
    assert holes == (second, last)
    assert data[:PIECE_BYTES] == blob[:PIECE_BYTES]
    assert data[2 * PIECE_BYTES : 3 * PIECE_BYTES] == blob[2 * PIECE_BYTES : 3 * PIECE_BYTES]
    assert cache.holds([digest], LONG) == [False]
    cache.write(digest, blob, holes)
    assert read(cache, digest, LONG) == (bytes(blob), ())


def test_many_are_read_in_one_call_in_order(cache: BlobCache) -> None:
    blobs = [make_blob(PIECE_BYTES + seed, seed) for seed in range(6)]
    for digest, blob in blobs[::2]:
        cache.write(digest, blob, everything(blob))
    wanted = [Wanted(digest, memoryview(bytearray(len(blob)))) for digest, blob in blobs]
    holes = cache.read(wanted)
    assert [not one for one in holes] == [True, False] * 3
    assert all(bytes(one.into) == blob for one, (_, blob) in list(zip(wanted, blobs, strict=True))[::2])


def test_what_is_forgotten_is_gone_and_only_that(cache: BlobCache) -> None:
    (gone, first), (kept, second) = make_blob(LONG, 1), make_blob(LONG, 2)
    for digest, blob in ((gone, first), (kept, second)):
        cache.write(digest, blob, everything(blob))
    cache.forget(gone, LONG)
    assert cache.holds([gone, kept], LONG) == [False, True]
    cache.forget(gone, LONG)


def test_nothing_asked_is_nothing_read(cache: BlobCache) -> None:
    assert cache.read([]) == []
    assert cache.holds([], 4096) == []


def test_threads_do_not_mix_answers_up(cache: BlobCache) -> None:
    blobs = [make_blob(PIECE_BYTES + 10, seed) for seed in range(8)]
    for digest, blob in blobs:
        cache.write(digest, blob, everything(blob))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda one: read(cache, one[0], len(one[1])), blobs * 4))
    assert answers == [(bytes(blob), ()) for _, blob in blobs * 4]


def test_memory_drops_the_least_recently_used() -> None:
    cache = MemoryCache(3 * 4096)
    blobs = [make_blob(4096, seed) for seed in range(4)]
    for digest, blob in blobs[:3]:
        cache.write(digest, blob, everything(blob))
    read(cache, blobs[0][0], 4096)
    cache.write(*blobs[3], everything(blobs[3][1]))
    assert cache.holds([digest for digest, _ in blobs], 4096) == [True, False, True, True]


def test_redis_keeps_pieces_within_one_allocator_class(server: RedisServer, raw: redis.Redis) -> None:
    cache = RedisCache(server.url)
    digest, blob = make_blob(LONG)
    cache.write(digest, blob, everything(blob))
    keys = list(raw.scan_iter())
    lengths = sorted(int(raw.strlen(key)) for key in keys)
    assert lengths == [777, PIECE_BYTES, PIECE_BYTES, PIECE_BYTES]
    assert max(int(raw.memory_usage(key) or 0) for key in keys) < PIECE_BYTES * 1.01
    cache.close()


def test_a_value_of_another_length_is_a_hole(server: RedisServer, raw: redis.Redis) -> None:
    cache = RedisCache(server.url)
    digest, blob = make_blob(LONG)
    cache.write(digest, blob, everything(blob))
    raw.append(f"premoe:blob:{digest}:1", b"x")
    assert read(cache, digest, LONG)[1] == (Hole(PIECE_BYTES, PIECE_BYTES),)
    cache.close()


def test_a_wrong_kind_of_value_is_an_error_that_leaves_the_connection_usable(
    server: RedisServer, raw: redis.Redis
) -> None:
    cache = RedisCache(server.url, connections=1)
    digest, blob = make_blob(LONG)
    raw.lpush(f"premoe:blob:{digest}:0", "odd")
    with pytest.raises(Unavailable, match="WRONGTYPE"):
        read(cache, digest, LONG)
    raw.flushall()
    cache.write(digest, blob, everything(blob))
    assert read(cache, digest, LONG) == (bytes(blob), ())
    cache.close()


def test_a_full_redis_is_exhausted(server: RedisServer, raw: redis.Redis) -> None:
    cache = RedisCache(server.url)
    digest, blob = make_blob(LONG)
    raw.config_set("maxmemory", 1 << 20)
    try:
        with pytest.raises(Exhausted, match="is full") as caught:
            cache.write(digest, blob, everything(blob))
    finally:
        raw.config_set("maxmemory", 0)
    assert caught.value.reason == "CACHE_FULL"
    cache.close()


def test_a_redis_that_comes_back_is_used_again(tmp_path: Path, unused_tcp_port: int) -> None:
    cache = RedisCache(f"redis://127.0.0.1:{unused_tcp_port}/0")
    digest, blob = make_blob(LONG)
    with pytest.raises(Unavailable, match="Redis at 127") as caught:
        cache.write(digest, blob, everything(blob))
    assert caught.value.reason == "CACHE_UNAVAILABLE"
    cache.close()
    with redis_server(tmp_path) as running:
        cache = RedisCache(running.url)
        cache.write(digest, blob, everything(blob))
        running.process.terminate()
        running.process.wait()
        with pytest.raises(Unavailable):
            read(cache, digest, LONG)
    cache.close()


def test_of_several_servers_each_has_some_blobs_and_one_that_is_down_costs_only_its_own(tmp_path: Path) -> None:
    blobs = [make_blob(4096, seed) for seed in range(24)]
    with several(tmp_path) as servers:
        cache = RedisCache(servers.url, timeout_s=5)
        for digest, blob in blobs:
            cache.write(digest, blob, everything(blob))
        digests = [digest for digest, _ in blobs]
        assert cache.holds(digests, 4096) == [True] * 24
        servers.processes[0].kill()
        servers.processes[0].wait()
        held = cache.holds(digests, 4096)
        assert 0 < sum(held) < 24
        wanted = [Wanted(digest, memoryview(bytearray(4096))) for digest in digests]
        assert [not holes for holes in cache.read(wanted)] == held
        for process in servers.processes[1:]:
            process.kill()
            process.wait()
        with pytest.raises(Unavailable):
            cache.read(wanted)
        cache.close()


def test_a_master_that_dies_is_replaced(tmp_path: Path) -> None:
    digest, blob = make_blob(LONG)
    with with_sentinel(tmp_path) as servers:
        cache = RedisCache(servers.url, timeout_s=5)
        cache.write(digest, blob, everything(blob))
        with redis.Redis.from_url(servers.each[0]) as master:
            assert master.wait(1, 20_000) == 1
        servers.processes[0].kill()
        until = time.monotonic() + FAILOVER_S
        while True:
            try:
                assert read(cache, digest, LONG) == (bytes(blob), ())
                break
            except Unavailable:
                assert time.monotonic() < until
                time.sleep(0.1)
        cache.close()


def test_a_node_of_a_cluster_that_is_down_costs_its_pieces(tmp_path: Path) -> None:
    blobs = [make_blob(LONG, seed) for seed in range(6)]
    with cluster(tmp_path) as servers:
        for url in servers.each:
            with redis.Redis.from_url(url) as node:
                node.config_set("cluster-require-full-coverage", "no")
        cache = RedisCache(servers.url, timeout_s=5)
        for digest, blob in blobs:
            cache.write(digest, blob, everything(blob))
        servers.processes[2].kill()
        servers.processes[2].wait()
        missing = 0
        for digest, blob in blobs:
            data, holes = read(cache, digest, LONG)
            missing += len(holes)
            for index, where in enumerate(pieces(LONG)):
                if where not in holes:
                    assert data[where.offset : where.end] == blob[where.offset : where.end], index
        assert 0 < missing < 24
        cache.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "nonsense",
        "redis+sentinel://user:secret@127.0.0.1:1",
        "redis+cluster://127.0.0.1:1/3",
        "redis+cluster://:1",
        "redis+other://127.0.0.1",
        "redis://127.0.0.1,redis+cluster://127.0.0.1",
    ],
)
def test_a_bad_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="Redis URL") as caught:
        RedisCache(url)
    assert caught.value.reason == "REDIS_URL"
    assert "secret" not in str(caught.value)
