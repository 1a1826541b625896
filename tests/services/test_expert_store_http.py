"""Blobs over HTTP from the expert store as a real process, as Resolve names them."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_dataplane.plan import SCHEMES, BlobPlan
from premoe_dataplane.signing import BlobName, Signer, keys_of
from premoe_dataplane.transports.base import Part
from premoe_dataplane.transports.http import HttpTransport
from premoe_dataplane.wire import experts_to_wire, plan_of_wire
from premoe_servicekit.clients import channel
from premoe_servicekit.errors import rpc_errors
from support.blob_pack import BlobPack, write_blob_pack
from support.gated_proxy import gated_proxy
from support.metrics import scrape
from support.processes import Child, run_to_end, serving
from support.servers import free_port, s3_server

from premoe_runtime.formats.errors import PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, piece_count
from premoe_runtime.storage import open_store

MODULE = "premoe_expert_store.cli"
BLOB = 256 << 10
EVERYTHING = [ExpertId(layer, expert) for layer in range(2) for expert in range(4)]

Stub = experts_pb2_grpc.ExpertStoreServiceStub


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def pack(url: str) -> BlobPack:
    return write_blob_pack(open_store(url), blob_bytes=BLOB)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "url-key"
    path.write_text("k" * 64 + "\n")
    return path


@pytest.fixture
def flags(url: str, key: Path) -> list[str]:
    return ["--store-url", url, "--http-port", "0", "--url-key", str(key), "--metrics-port", "0"]


@pytest.fixture
def child(flags: list[str], pack: BlobPack) -> Iterator[Child]:
    with serving(MODULE, flags) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def resolve(
    stub: Any, experts: Sequence[ExpertId] = EVERYTHING, schemes: Sequence[str] = ("http",), num_bytes: int = BLOB
) -> list[BlobPlan]:
    with rpc_errors("the store"):
        answer = await stub.Resolve(pb.ResolveRequest(experts=experts_to_wire(experts), schemes=schemes))
    return list(plan_of_wire(answer, experts, num_bytes, "the store").blobs)


def at_port(flags: list[str], port: int) -> list[str]:
    at = flags.index("--http-port") + 1
    return [*flags[:at], str(port), *flags[at + 1 :]]


async def get(client: aiohttp.ClientSession, address: str, **arguments: Any) -> tuple[int, bytes]:
    async with client.get(address, **arguments) as answer:
        return answer.status, await answer.read()


def of_objects(child: Child) -> float:
    return scrape(str(child.ready["metrics"])).value("premoe:store_read_bytes_total", source="object")


async def test_resolve_names_addresses_that_can_be_read(
    child: Child, pack: BlobPack, client: aiohttp.ClientSession
) -> None:
    async with channel(child.address) as to_store:
        stub = Stub(to_store)
        for expected_tier in ("object", "node"):
            for blob in await resolve(stub):
                (source,) = blob.sources
                assert urlsplit(source.url).netloc == child.ready["http"]
                assert source.tier == expected_tier
                assert await get(client, source.url) == (200, pack.blobs[blob.expert])
                half = {"Range": f"bytes={BLOB // 2}-"}
                assert await get(client, source.url, headers=half) == (206, pack.blobs[blob.expert][BLOB // 2 :])
        everything = await resolve(stub, EVERYTHING[:1], SCHEMES)
        assert [one.scheme for one in everything[0].sources] == ["file", "http", "grpc", "object"]
        assert Path(everything[0].sources[0].url).read_bytes() == pack.blobs[EVERYTHING[0]]
        assert [one.scheme for one in (await resolve(stub, schemes=()))[0].sources] == ["grpc"]
    assert of_objects(child) == len(EVERYTHING) * BLOB


async def test_addresses_that_are_not_ours_or_over(
    child: Child, pack: BlobPack, key: Path, client: aiohttp.ClientSession
) -> None:
    async with channel(child.address) as to_store:
        first, second = [blob.sources[0].url for blob in await resolve(Stub(to_store), EVERYTHING[:2])]
    assert (await get(client, first))[0] == 200
    assert (await get(client, first.replace("expert=0", "expert=1")))[0] == 403
    swapped = f"{second.partition('?')[0]}?{first.partition('?')[2]}"
    assert (await get(client, swapped))[0] == 403
    assert (await get(client, first.partition("?")[0]))[0] == 400
    name = BlobName(pack.manifest.digest(EVERYTHING[0]), pack.model_id, EVERYTHING[0])
    over = Signer(keys_of(key)).path(name, int(time.time()) - 1000)
    status, line = await get(client, f"http://{child.ready['http']}{over}")
    assert (status, line.startswith(b"URL_EXPIRED: ")) == (403, True)


async def test_64_cold_clients_cost_one_read_of_each_blob(child: Child, pack: BlobPack) -> None:
    async with channel(child.address) as to_store:
        addresses = {blob.expert: blob.sources[0].url for blob in await resolve(Stub(to_store))}

    async def one() -> bool:
        # Two connections each, as workers have them.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2)) as client:
            answers = await asyncio.gather(*(get(client, address) for address in addresses.values()))
        return answers == [(200, pack.blobs[expert]) for expert in addresses]

    assert all(await asyncio.gather(*(one() for _ in range(64))))
    assert of_objects(child) == len(EVERYTHING) * BLOB


async def test_slow_readers_cost_no_memory_and_nobody_s_turn(tmp_path: Path, flags: list[str], url: str) -> None:
    readers, num_bytes = 64, 8 << 20
    pack = write_blob_pack(open_store(url), layers=1, experts=2, blob_bytes=num_bytes, file_bytes=64)
    expert = next(iter(pack.blobs))
    with ExitStack() as stack:
        child = stack.enter_context(serving(MODULE, flags))
        async with channel(child.address) as to_store:
            (blob, *_) = await resolve(Stub(to_store), list(pack.blobs), num_bytes=num_bytes)
        address = urlsplit(blob.sources[0].url)
        async with aiohttp.ClientSession() as client:
            assert await get(client, blob.sources[0].url) == (200, pack.blobs[expert])
            process = psutil.Process(child.process.pid)
            before = process.memory_info().rss
            for _ in range(readers):
                slow = stack.enter_context(socket.create_connection((address.hostname, address.port), 60.0))
                slow.sendall(f"GET {address.path}?{address.query} HTTP/1.1\r\nHost: store\r\n\r\n".encode())
                assert await asyncio.to_thread(slow.recv, 12) == b"HTTP/1.1 200"
            assert await get(client, blob.sources[0].url) == (200, pack.blobs[expert])
        # What lies in the cache is main memory too, but nobody's in particular: sendfile maps nothing.
        assert process.memory_info().rss - before < readers * num_bytes / 8


async def test_many_resolves_one_after_the_other(child: Child, pack: BlobPack) -> None:
    """What a big fleet sends within seconds; other calls pass in between."""
    async with channel(child.address) as to_store:
        stub = Stub(to_store)
        request = pb.ResolveRequest(experts=experts_to_wire(EVERYTHING), schemes=["http", "grpc"])
        answered = 0

        async def many() -> None:
            nonlocal answered
            for _ in range(50):
                assert len((await stub.Resolve(request)).blobs) == len(EVERYTHING)
                answered += 1

        fleet = [asyncio.ensure_future(many()) for _ in range(20)]
        between = []
        while not all(task.done() for task in fleet):
            await stub.GetManifest(pb.GetManifestRequest())
            between.append(answered)
        await asyncio.gather(*fleet)
    assert answered == 1000
    assert len(between) > 10, "a call is answered among the others, not after them"
    metrics = scrape(str(child.ready["metrics"]))
    assert metrics.value("premoe:store_resolved_blobs_total") == 1000 * len(EVERYTHING)
    assert of_objects(child) == 0


async def test_a_blob_is_sent_while_it_arrives_from_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: aiohttp.ClientSession
) -> None:
    folder = tmp_path / "s3"
    folder.mkdir()
    blob_bytes, first = 12 << 20, ExpertId(0, 0)
    with s3_server(folder) as s3, gated_proxy(s3.endpoint) as proxy:
        for name, value in {**s3.env, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        pack = write_blob_pack(open_store(s3.url), blob_bytes=blob_bytes, layers=1, experts=1)
        arguments = ["--store-url", s3.url, "--http-port", "0", "--threads", "1"]
        with serving(MODULE, arguments) as child:
            async with channel(child.address) as to_store:
                (blob,) = await resolve(Stub(to_store), [first], num_bytes=blob_bytes)
            # One range of the two that the blob is read in, and what is written around it.
            proxy.let_pass(9 << 20)
            async with client.get(blob.sources[0].url) as answer:
                assert (answer.status, answer.content_length) == (200, blob_bytes)
                early = await answer.content.readexactly(8 * PIECE_BYTES)
                proxy.let_pass(None)
                assert early + await answer.read() == pack.blobs[first]


async def test_a_dead_store_is_unavailable_to_every_call(child: Child, pack: BlobPack) -> None:
    """Calls under way when the store is killed: each ends, with an error that says to try again."""
    async with channel(child.address) as to_store:
        stub = Stub(to_store)
        plan = await stub.Resolve(pb.ResolveRequest(experts=experts_to_wire(EVERYTHING)))
        ids = experts_to_wire(EVERYTHING)
        streams: list[Any] = [
            stub.WatchStore(pb.WatchStoreRequest()),
            stub.Fetch(pb.FetchRequest(experts=ids * 400)),
            stub.FetchFile(pb.FetchFileRequest(path="skeleton/config.json")),
        ]
        for stream in streams[:2]:
            await stream.read()
        child.process.send_signal(signal.SIGSTOP)
        unary = [
            stub.GetManifest(pb.GetManifestRequest()),
            stub.Resolve(pb.ResolveRequest(experts=ids)),
            stub.Prefetch(pb.PrefetchRequest(experts=ids)),
            stub.Renew(pb.RenewRequest(lease_id=plan.lease_id)),
            stub.Release(pb.ReleaseRequest(lease_id=plan.lease_id)),
        ]
        waiting = [asyncio.ensure_future(_outcome(call)) for call in unary]
        waiting += [asyncio.ensure_future(_outcome(_drained(stream))) for stream in streams]
        await asyncio.sleep(0.2)
        child.process.kill()
        outcomes = await asyncio.gather(*waiting)
    # The file is short: all of it may have been under way.
    assert [type(one) for one in outcomes[:-1]] == [Unavailable] * 7
    assert isinstance(outcomes[-1], Unavailable | None)


async def _drained(stream: Any) -> None:
    async for _ in stream:
        pass


async def _outcome(call: Any) -> PremoeError | None:
    try:
        with rpc_errors("the store"):
            await call
    except PremoeError as error:
        return error
    return None


async def test_watchers_are_sent_away_at_a_stop(child: Child, pack: BlobPack) -> None:
    async with channel(child.address) as to_store:
        stub = Stub(to_store)
        watch: Any = stub.WatchStore(pb.WatchStoreRequest())
        first = await watch.read()
        assert (first.progress.present, first.progress.under_way) == (0, 0)
        counts = await stub.Prefetch(pb.PrefetchRequest(experts=experts_to_wire(EVERYTHING)))
        assert (counts.present, counts.under_way, counts.refused) == (0, len(EVERYTHING), 0)
        while (event := await watch.read()).progress.present < len(EVERYTHING):
            assert event.WhichOneof("event") == "progress"
        child.process.send_signal(signal.SIGTERM)
        await _drained(watch)
    assert await asyncio.to_thread(child.process.wait, 30) == 0
    assert "Traceback" not in child.stderr()


async def test_a_stream_goes_on_where_it_broke_off(child: Child, pack: BlobPack) -> None:
    async with channel(child.address) as to_store:
        request = pb.FetchRequest(experts=experts_to_wire(EVERYTHING[2:4]), offset=BLOB // 2)
        frames = [frame async for frame in Stub(to_store).Fetch(request)]
        assert [(frame.index, frame.offset) for frame in frames] == [(0, BLOB // 2), (1, 0)]
        data = b"".join(frame.data for frame in frames)
        assert data == pack.blobs[EVERYTHING[2]][BLOB // 2 :] + pack.blobs[EVERYTHING[3]]


async def test_a_kept_connection_of_a_store_that_was_restarted(flags: list[str], pack: BlobPack) -> None:
    flags = at_port(flags, free_port())
    transport = HttpTransport(idle_s=30)
    into, landed = bytearray(BLOB), threading.Event()

    async def read(plan: BlobPlan) -> None:
        parts = [Part(plan, plan.sources[0], memoryview(into), tuple(range(piece_count(BLOB))))]
        landed.clear()
        await asyncio.to_thread(transport.read, parts, lambda part, index: landed.set(), lambda: False)
        assert landed.is_set()
        assert into == pack.blobs[plan.expert]

    try:
        with serving(MODULE, flags) as child:
            async with channel(child.address) as to_store:
                plans = await resolve(Stub(to_store))
            await read(plans[0])
            child.process.kill()
            child.process.wait()
        with serving(MODULE, flags):
            await read(plans[1])
    finally:
        transport.close()


async def test_replicas_read_each_blob_once_between_them(
    flags: list[str], pack: BlobPack, client: aiohttp.ClientSession
) -> None:
    ports = free_port(), free_port()
    peers = ["--peers", ",".join(f"127.0.0.1:{port}" for port in ports)]
    with (
        serving(MODULE, at_port(flags, ports[0]) + peers) as one,
        serving(MODULE, at_port(flags, ports[1]) + peers) as other,
    ):
        async with channel(one.address) as to_one, channel(other.address) as to_other:
            while True:
                plans = [await resolve(Stub(to_one)), await resolve(Stub(to_other))]
                # Each names its own address, and for what is not its own that of the home before it.
                if sum(len(blob.sources) for plan in plans for blob in plan) == 3 * len(EVERYTHING):
                    break
                await asyncio.sleep(0.1)
            assert [blob.sources[0].url.split("?")[0] for blob in plans[0]] == [
                blob.sources[0].url.split("?")[0] for blob in plans[1]
            ], "all replicas send a blob's readers to the same one"
            # By their own addresses: what is not theirs they ask of its home.
            for child in (one, other):
                base = f"http://{child.ready['http']}"
                for blob in plans[0]:
                    parts = urlsplit(blob.sources[0].url)
                    assert await get(client, f"{base}{parts.path}?{parts.query}") == (200, pack.blobs[blob.expert])
            assert of_objects(one) + of_objects(other) == len(EVERYTHING) * BLOB
            other.process.kill()
            for blob in plans[0]:
                parts = urlsplit(blob.sources[0].url)
                assert (await get(client, f"http://{one.ready['http']}{parts.path}?{parts.query}"))[0] == 200


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--http-port", "0", "--http-host", "0.0.0.0"], 2, "--advertise HOST:PORT"),
        (["--peers", "a:1"], 2, "give --http-port too"),
        (["--http-port", "0", "--peers", "a"], 2, "--peers: 'a' is no HOST:PORT"),
        (["--http-port", "0", "--bytes-congestion-control", "snail"], 2, "congestion control 'snail'"),
        (["--url-key", "/dev/null"], 2, "openssl rand -hex 32"),
        (["--url-key", "/no/such"], 2, "key file /no/such cannot be read"),
        (["--cache-dir", "/proc/no"], 2, "/proc/no"),
        (["--http-connections", "0"], 2, "--http-connections"),
    ],
)
def test_a_bad_start_is_one_line(arguments: list[str], code: int, says: str) -> None:
    ended = run_to_end(MODULE, ["--store-url", "memory://x", *arguments])
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (code, "", 1)
    assert ended.stderr.startswith("error: ")
    assert says in ended.stderr
