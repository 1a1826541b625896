"""The expert store as a real process over a real object store and a real Redis."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_servicekit.clients import channel
from premoe_servicekit.errors import rpc_errors
from support.blob_pack import DATA_OFFSET, BlobPack, write_blob_pack
from support.processes import Child, run_to_end, serving
from support.servers import RedisServer, redis_server, s3_server

from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.storage import open_store

MODULE = "premoe_expert_store.cli"
BLOB = 1 << 20
EVERYTHING = [ExpertId(layer, expert) for layer in range(2) for expert in range(4)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def pack(url: str) -> BlobPack:
    return write_blob_pack(open_store(url), blob_bytes=BLOB)


@pytest.fixture
def child(url: str, pack: BlobPack) -> Iterator[Child]:
    with serving(MODULE, ["--store-url", url]) as running:
        yield running


def ids(experts: Sequence[ExpertId]) -> list[pb.ExpertId]:
    return [pb.ExpertId(layer=expert.layer, expert=expert.expert) for expert in experts]


async def fetch(
    to_store: grpc.aio.Channel, experts: Sequence[ExpertId], model_id: str = ""
) -> list[tuple[bytes, set[int]]]:
    """The blobs and the tiers of their frames."""
    stub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
    found: list[tuple[bytearray, set[int]]] = [(bytearray(), set()) for _ in experts]
    with rpc_errors("the store"):
        async for frame in stub.Fetch(pb.FetchRequest(model_id=model_id, experts=ids(experts))):
            data, tiers = found[frame.index]
            assert frame.offset == len(data)
            assert len(frame.data) <= 1 << 20
            data += frame.data
            tiers.add(frame.tier)
    return [(bytes(data), tiers) for data, tiers in found]


def expected(pack: BlobPack, experts: Sequence[ExpertId], tier: int) -> list[tuple[bytes, set[int]]]:
    return [(pack.blobs[expert], {tier}) for expert in experts]


async def test_a_pack_is_served_whole(child: Child, pack: BlobPack) -> None:
    async with channel(child.address) as to_store:
        stub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
        manifest = await stub.GetManifest(pb.GetManifestRequest())
        assert (manifest.model_id, manifest.manifest) == (pack.model_id, pack.manifest.to_json())
        resolved = await stub.Resolve(pb.ResolveRequest(model_id=pack.model_id, experts=ids(EVERYTHING[:2])))
        assert [blob.digest for blob in resolved.blobs] == [pack.manifest.digest(one) for one in EVERYTHING[:2]]
        assert {(one.tier, one.scheme, one.length) for blob in resolved.blobs for one in blob.sources} == {
            (pb.TIER_OBJECT, "grpc", BLOB)
        }
        assert resolved.lease_id
        assert await fetch(to_store, EVERYTHING[::-1]) == expected(pack, EVERYTHING[::-1], pb.TIER_OBJECT)
        file = b"".join([one.data async for one in stub.FetchFile(pb.FetchFileRequest(path="skeleton/config.json"))])
        assert file == pack.files["skeleton/config.json"]
    assert child.ready["service"] == "expert-store"


async def kept(to_store: grpc.aio.Channel, experts: Sequence[ExpertId]) -> None:
    """Returns once blobs that were read have their names in the node's cache."""
    stub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
    while (await stub.Prefetch(pb.PrefetchRequest(experts=ids(experts)))).present < len(experts):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def error_of(to_store: grpc.aio.Channel, experts: Sequence[ExpertId], model_id: str) -> PremoeError:
    with pytest.raises(PremoeError) as caught:
        await fetch(to_store, experts, model_id)
    return caught.value


async def test_errors_keep_their_class_and_reason_over_the_wire(child: Child, pack: BlobPack, url: str) -> None:
    store = open_store(url)
    store.put(pack.layer_path(1), bytes(DATA_OFFSET + 4 * BLOB))
    store.put(pack.layer_path(0), store.get(pack.layer_path(0))[: DATA_OFFSET + BLOB + 1])
    async with channel(child.address) as to_store:
        errors = [
            await error_of(to_store, [ExpertId(7, 0)], pack.model_id),
            await error_of(to_store, [ExpertId(0, 0)], "0" * 64),
            await error_of(to_store, [], pack.model_id),
            await error_of(to_store, [ExpertId(0, 0)], "../x"),
            await error_of(to_store, [ExpertId(1, 0)], pack.model_id),
            await error_of(to_store, [ExpertId(0, 3)], pack.model_id),
        ]
        assert [(type(error), error.reason) for error in errors] == [
            (NotFound, "EXPERT_NOT_FOUND"),
            (NotFound, "MODEL_NOT_FOUND"),
            (InvalidInput, "EXPERTS_MISSING"),
            (InvalidInput, "ID_INVALID"),
            (CorruptData, "DIGEST_MISMATCH"),
            (CorruptData, "OBJECT_TRUNCATED"),
        ]
        assert await fetch(to_store, [ExpertId(0, 0)]) == expected(pack, [ExpertId(0, 0)], pb.TIER_OBJECT)


async def test_a_stop_lets_a_running_stream_end(child: Child, pack: BlobPack) -> None:
    async with channel(child.address) as to_store:
        stub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
        watch = health_pb2_grpc.HealthStub(to_store).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        asked = EVERYTHING * 8  # more than fits into the windows of flow control
        call = stub.Fetch(pb.FetchRequest(experts=ids(asked)))
        first = await call.read()
        assert isinstance(first, pb.FetchResponse)
        child.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        received = len(first.data)
        async for frame in call:
            received += len(frame.data)
        assert received == len(asked) * BLOB
    assert await asyncio.to_thread(child.process.wait, 30) == 0
    assert "Traceback" not in child.stderr()


async def test_a_killed_store_is_unavailable_and_comes_back_on_its_port(child: Child, pack: BlobPack, url: str) -> None:
    async with channel(child.address) as to_store:
        stub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
        call = stub.Fetch(pb.FetchRequest(experts=ids(EVERYTHING * 8)))
        await call.read()
        child.process.kill()
        with pytest.raises(Unavailable), rpc_errors("the store"):
            async for _ in call:
                pass
        await asyncio.to_thread(child.process.wait)
        port = child.address.rpartition(":")[2]
        with serving(MODULE, ["--store-url", url, "--port", port]):
            request = pb.GetManifestRequest()
            answer = await stub.GetManifest(request, wait_for_ready=True)
            assert answer.model_id == pack.model_id


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(folder) as running:
        yield running


async def test_redis_is_filled_used_and_not_missed(url: str, pack: BlobPack, redis: RedisServer) -> None:
    arguments = ["--store-url", url, "--redis-url", redis.url]
    with serving(MODULE, arguments) as first:
        async with channel(first.address) as to_store:
            assert await fetch(to_store, EVERYTHING) == expected(pack, EVERYTHING, pb.TIER_OBJECT)
        assert await asyncio.to_thread(first.stop) == 0
    with serving(MODULE, arguments) as second:
        async with channel(second.address) as to_store:
            assert await fetch(to_store, EVERYTHING) == expected(pack, EVERYTHING, pb.TIER_REDIS)
            await kept(to_store, EVERYTHING)
            stub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
            resolved = await stub.Resolve(pb.ResolveRequest(experts=ids(EVERYTHING[:1])))
            assert [one.tier for one in resolved.blobs[0].sources] == [pb.TIER_NODE]
            assert await fetch(to_store, EVERYTHING) == expected(pack, EVERYTHING, pb.TIER_NODE)
    with serving(MODULE, [*arguments, "--cache-bytes", "1"]) as third:
        async with channel(third.address) as to_store:
            assert await fetch(to_store, EVERYTHING) == expected(pack, EVERYTHING, pb.TIER_REDIS)
            redis.process.kill()
            redis.process.wait()
            for _ in range(3):
                assert await fetch(to_store, EVERYTHING) == expected(pack, EVERYTHING, pb.TIER_OBJECT)
        assert third.stderr().count("the cache is skipped") == 1


async def test_stores_of_a_node_share_a_folder_that_outlives_them(url: str, pack: BlobPack, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    arguments = ["--store-url", url, "--cache-dir", str(folder), "--cache-bytes", str(8 * BLOB)]
    with serving(MODULE, arguments) as first, serving(MODULE, arguments) as second:
        async with channel(first.address) as to_first, channel(second.address) as to_second:
            assert await fetch(to_first, EVERYTHING[:4]) == expected(pack, EVERYTHING[:4], pb.TIER_OBJECT)
            await kept(to_first, EVERYTHING[:4])
            assert await fetch(to_second, EVERYTHING[:4]) == expected(pack, EVERYTHING[:4], pb.TIER_NODE)
            stub = experts_pb2_grpc.ExpertStoreServiceStub(to_first)
            call = stub.Fetch(pb.FetchRequest(experts=ids(EVERYTHING[4:] * 8)))
            await call.read()
            first.process.kill()
            await asyncio.to_thread(first.process.wait)
            found = await fetch(to_second, EVERYTHING)
            await kept(to_second, EVERYTHING)
            assert [data for data, _ in found] == [pack.blobs[one] for one in EVERYTHING]
        assert await asyncio.to_thread(second.stop) == 0
    with serving(MODULE, arguments) as third:
        async with channel(third.address) as to_third:
            assert await fetch(to_third, EVERYTHING) == expected(pack, EVERYTHING, pb.TIER_NODE)
    assert len(list(folder.glob("blobs/*/*"))) == len(EVERYTHING)
    assert list(folder.glob("arriving/*")) == []


async def test_s3_serves_the_same_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s3"
    folder.mkdir()
    with s3_server(folder) as s3:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        url = f"{s3.url}/prefix"
        pack = write_blob_pack(open_store(url), blob_bytes=BLOB)
        with serving(MODULE, ["--store-url", url]) as child:
            async with channel(child.address) as to_store:
                assert await fetch(to_store, EVERYTHING) == expected(pack, EVERYTHING, pb.TIER_OBJECT)
                s3.process.kill()
                s3.process.wait()
                with pytest.raises(Unavailable):
                    await fetch(to_store, EVERYTHING)


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        ([], {}, 2, "--store-url (PREMOE_EXPERT_STORE_STORE_URL)"),
        (["--store-url", "ftp://x"], {}, 2, "unknown scheme 'ftp'"),
        (["--store-url", "memory://x", "--redis-url", "http://x"], {}, 2, "Redis URL"),
        (["--store-url", "memory://x"], {"PREMOE_EXPERT_STORE_REDIS": "x"}, 2, "PREMOE_EXPERT_STORE_REDIS_URL?"),
        (["--store-url", "memory://x", "--threads", "0"], {}, 2, "--threads"),
    ],
)
def test_a_bad_start_is_one_line(arguments: list[str], environment: dict[str, str], code: int, says: str) -> None:
    ended = run_to_end(MODULE, arguments, environment)
    assert ended.returncode == code
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1
    assert says in ended.stderr


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = run_to_end(MODULE, ["--store-url", "memory://x", "--port", str(taken.getsockname()[1])])
    assert ended.returncode == 6
    assert ended.stderr.startswith("error: port ")
    assert len(ended.stderr.splitlines()) == 1


def test_help_names_every_setting() -> None:
    ended = run_to_end(MODULE, ["--help"])
    assert ended.returncode == 0
    for words in ("premoe-expert-store", "--store-url", "--redis-url", "PREMOE_EXPERT_STORE_"):
        assert words in ended.stdout
