"""Sources that break while experts are fetched, each a real one: right bytes come, from elsewhere."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import blake3
import pytest
import redis
from premoe_dataplane.delivery import Delivery
from premoe_dataplane.fetcher import Fetcher
from premoe_dataplane.plan import BlobPlan, Scheme, Source, SwapPlan, Tier
from premoe_dataplane.redis_cache import RedisCache
from premoe_dataplane.transports.file import FileTransport
from premoe_dataplane.transports.http import HttpTransport
from premoe_dataplane.transports.redis import RedisTransport
from premoe_dataplane.transports.stream import StreamTransport
from premoe_servicekit.clients import blocking_channel
from support.frame_store import FrameStore
from support.range_server import Answer, RangeServer, failing, flipped, range_server, shifted, silent, truncated
from support.servers import RedisServer, redis_server

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, Hole
from premoe_runtime.packs.checks import piece_checks

pytestmark = pytest.mark.services

LONG = 2 * PIECE_BYTES + 999
BLOBS = {ExpertId(0, number): random.Random(number).randbytes(LONG) for number in range(6)}
DIGESTS = {expert: blake3.blake3(data).hexdigest() for expert, data in BLOBS.items()}
TIERS: dict[Scheme, Tier] = {"file": "node", "http": "node", "redis": "redis", "grpc": "object"}
JOIN_S = 20.0


@dataclass
class Rig:
    """Every kind of source with every blob, and a fetcher over all."""

    folder: Path
    http: RangeServer
    redis: RedisServer
    store: FrameStore
    fetcher: Fetcher
    on_blob: Callable[[], object] = lambda: None
    rooms: dict[ExpertId, bytearray] = field(default_factory=dict)

    def source(self, scheme: Scheme, expert: ExpertId) -> Source:
        digest = DIGESTS[expert]
        url = {
            "file": str(self.folder / digest),
            "http": self.http.url(digest),
            "redis": f"premoe:blob:{digest}",
            "grpc": "lease",
        }[scheme]
        return Source(scheme, TIERS[scheme], url)

    def bring(self, *schemes: Scheme) -> None:
        """Everything, and every byte is right."""
        plans = [
            BlobPlan(
                expert, DIGESTS[expert], LONG, tuple(self.source(one, expert) for one in schemes), piece_checks(data)
            )
            for expert, data in BLOBS.items()
        ]
        finished: list[ExpertId] = []

        def into(expert: ExpertId) -> memoryview:
            self.rooms[expert] = bytearray(LONG)
            return memoryview(self.rooms[expert])

        def done(expert: ExpertId) -> None:
            assert bytes(self.rooms[expert]) == BLOBS[expert]
            finished.append(expert)
            self.on_blob()

        delivery = Delivery(list(BLOBS), LONG, into, done)
        self.fetcher.fetch(SwapPlan(plans, "lease", time.time() + 60), delivery, lambda: False)
        assert sorted(finished) == sorted(BLOBS)

    def read(self) -> dict[str, int]:
        """Bytes by scheme."""
        return {scheme: count for (scheme, _), count in self.fetcher.counts.now()[0].items()}


@contextmanager
def rigged(folder: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(folder))
        store = FrameStore(blobs={DIGESTS[one]: data for one, data in BLOBS.items()}, names=dict(DIGESTS))
        http = stack.enter_context(range_server())
        address = stack.enter_context(store.served())
        channel = stack.enter_context(blocking_channel(address))
        cache = RedisCache(server.url, timeout_s=10)
        for expert, data in BLOBS.items():
            (folder / DIGESTS[expert]).write_bytes(data)
            http.blobs[DIGESTS[expert]] = data
            cache.write(DIGESTS[expert], memoryview(data), [Hole(0, LONG)])
        cache.close()
        fetcher = Fetcher(
            [
                FileTransport(),
                HttpTransport(idle_s=0.5),
                RedisTransport(server.url, idle_s=0.5),
                StreamTransport(channel, address, lambda: "model"),
            ]
        )
        stack.callback(fetcher.close)
        yield Rig(folder, http, server, store, fetcher)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rigged(tmp_path) as made:
        yield made


def flip(data: bytes) -> bytes:
    return data[:PIECE_BYTES] + bytes([data[PIECE_BYTES] ^ 4]) + data[PIECE_BYTES + 1 :]


def flip_file(rig: Rig, digest: str, data: bytes) -> None:
    (rig.folder / digest).write_bytes(flip(data))


def flip_http(rig: Rig, digest: str, data: bytes) -> None:
    rig.http.blobs[digest] = flip(data)


def flip_redis(rig: Rig, digest: str, data: bytes) -> None:
    with redis.Redis.from_url(rig.redis.url) as client:
        client.setrange(f"premoe:blob:{digest}:1", 0, bytes([data[PIECE_BYTES] ^ 4]))


def flip_frame(rig: Rig, digest: str, data: bytes) -> None:
    rig.store.blobs[digest] = flip(data)


FLIPS = {"file": flip_file, "http": flip_http, "redis": flip_redis, "grpc": flip_frame}


@pytest.mark.parametrize("scheme", FLIPS)
def test_one_flipped_bit_costs_its_piece_alone_from_elsewhere(rig: Rig, scheme: Scheme) -> None:
    expert = ExpertId(0, 2)
    FLIPS[scheme](rig, DIGESTS[expert], BLOBS[expert])
    other: Scheme = "http" if scheme == "grpc" else "grpc"
    rig.bring(scheme, other)
    _, wrong, again = rig.fetcher.counts.now()
    assert wrong == {TIERS[scheme]: 1}
    assert again == {scheme: 1}
    assert rig.read() == {scheme: LONG * len(BLOBS) - PIECE_BYTES, other: PIECE_BYTES}


@pytest.mark.parametrize("script", [shifted, truncated, failing, silent])
def test_http_that_goes_wrong_on_the_way(rig: Rig, script: Answer) -> None:
    rig.on_blob = lambda: rig.http.scripts.append(script) if not rig.http.scripts else None
    rig.bring("http", "grpc")
    assert rig.read()["grpc"] > 0
    rig.on_blob, rig.http.scripts = lambda: None, type(rig.http.scripts)()


def test_redis_killed_in_mid_fetch(rig: Rig) -> None:
    rig.on_blob = rig.redis.process.kill
    rig.bring("redis", "grpc")
    assert set(rig.read()) == {"redis", "grpc"}
    assert [place.scheme for place in rig.fetcher.breakers.open()] == ["redis"]


def test_redis_restarted_empty(rig: Rig) -> None:
    with redis.Redis.from_url(rig.redis.url) as client:
        client.flushall()
    rig.bring("redis", "grpc")
    assert rig.read() == {"grpc": LONG * len(BLOBS)}
    assert rig.fetcher.breakers.open() == []


def test_redis_evicts_pieces_in_mid_fetch(rig: Rig) -> None:
    with redis.Redis.from_url(rig.redis.url) as client:
        rig.on_blob = lambda: client.delete(*(f"premoe:blob:{digest}:1" for digest in DIGESTS.values()))
        client.delete(f"premoe:blob:{DIGESTS[ExpertId(0, 0)]}:0")
        rig.bring("redis", "http")
    assert rig.read()["http"] >= PIECE_BYTES
    assert rig.read()["http"] % PIECE_BYTES == 0


def test_redis_that_does_not_answer(rig: Rig) -> None:
    with redis.Redis.from_url(rig.redis.url) as client:
        client.execute_command("CLIENT", "PAUSE", 60_000, "ALL")
        rig.bring("redis", "grpc")
        assert rig.read() == {"grpc": LONG * len(BLOBS)}


def test_files_that_go_in_mid_fetch(rig: Rig) -> None:
    def gone() -> None:
        for digest in DIGESTS.values():
            (rig.folder / digest).unlink(missing_ok=True)

    rig.on_blob = gone
    rig.bring("file", "http")


def test_everything_breaks_but_the_last_and_nothing_is_left_behind(tmp_path: Path) -> None:
    threads = {thread.ident for thread in threading.enumerate()}
    with rigged(tmp_path) as rig:
        rig.bring("file", "http", "redis", "grpc")
        descriptors = len(os.listdir("/proc/self/fd"))
        rig.redis.process.kill()
        for digest in DIGESTS.values():
            (rig.folder / digest).unlink()
        rig.http.scripts.extend([flipped] * 3 + [truncated] * 9)
        for _ in range(5):
            rig.bring("file", "http", "redis", "grpc")
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 4
    until = time.monotonic() + JOIN_S
    while left := [one.name for one in threading.enumerate() if one.ident not in threads and "premoe" in one.name]:
        assert time.monotonic() < until, left
        time.sleep(0.02)
