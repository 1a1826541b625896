"""Traces across processes, with a collector that answers, one that does not, and none."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc
from premoe.patterns.v1 import patterns_pb2 as pb
from premoe.patterns.v1 import patterns_pb2_grpc
from premoe_servicekit.clients import channel
from support.blob_pack import write_blob_pack
from support.otlp import OtlpReceiver, otlp_receiver
from support.processes import environ, serving
from support.servers import redis_server
from support.stored_patterns import WEIGHTS, StoredSet, store_set

from premoe_runtime.formats.live import LivePointer, live_path
from premoe_runtime.storage import open_store

CLIENT, SERVER = 3, 2
"""OTLP's numbers of span kinds."""


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiving:
        yield receiving


def exporting(endpoint: str, protocol: str = "grpc") -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def live(url: str) -> StoredSet:
    stored = store_set(open_store(url))
    open_store(url).put(live_path(WEIGHTS), LivePointer(set_id=stored.set_id).encode())
    return stored


def traceparent() -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """A sampled W3C context of a caller: trace, span, metadata."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, (("traceparent", f"00-{trace_id}-{span_id}-01"),)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_retrieve_is_one_tree_under_the_callers_span(
    receiver: OtlpReceiver, url: str, live: StoredSet, protocol: str
) -> None:
    endpoint = receiver.endpoint if protocol == "grpc" else receiver.http_endpoint
    trace_id, span_id, metadata = traceparent()
    with serving("premoe_retrieval.cli", ["--store-url", url], exporting(endpoint, protocol)) as child:
        async with channel(child.address) as to_service:
            stub: patterns_pb2_grpc.PatternServiceAsyncStub = patterns_pb2_grpc.PatternServiceStub(to_service)
            request = pb.RetrieveRequest(weights_id=WEIGHTS, signature=live.near("sorting").tolist())
            await stub.Retrieve(request, metadata=metadata)
        assert await asyncio.to_thread(child.stop) == 0  # the last batch is exported at the stop
    tree = receiver.tree(trace_id)
    assert str(tree).splitlines() == [
        "premoe.patterns.v1.PatternService/Retrieve [premoe-retrieval]",
        "  qdrant query [premoe-retrieval]",
    ]
    assert (tree.span.parent_id, tree.span.kind) == (span_id, SERVER)
    assert (
        tree.span.attributes.items()
        >= {
            "rpc.system.name": "grpc",
            "rpc.method": "premoe.patterns.v1.PatternService/Retrieve",
            "rpc.response.status_code": "OK",
            "rpc.system": "grpc",
            "rpc.service": "premoe.patterns.v1.PatternService",
            "rpc.grpc.status_code": 0,
            "premoe.retrieval.decision": "specialist",
            "premoe.retrieval.top_k": 15,
            "premoe.retrieval.fallback": False,
        }.items()
    )
    assert tree.children[0].span.kind == CLIENT
    assert tree.children[0].span.attributes == {
        "db.system.name": "qdrant",
        "db.collection.name": "premoe-signatures-16",
        "db.operation.name": "query",
    }


async def test_a_fetch_has_a_span_for_each_source(receiver: OtlpReceiver, url: str, tmp_path: Path) -> None:
    write_blob_pack(open_store(url))
    contexts = [traceparent() for _ in range(2)]
    experts = [experts_pb2.ExpertId(layer=0, expert=expert) for expert in (0, 2, 3)]
    with redis_server(tmp_path) as redis:
        arguments = ["--store-url", url, "--redis-url", redis.url]
        for _, _, metadata in contexts:
            with serving("premoe_expert_store.cli", arguments, exporting(receiver.endpoint)) as child:
                async with channel(child.address) as to_store:
                    stub: experts_pb2_grpc.ExpertStoreServiceAsyncStub
                    stub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
                    async for _ in stub.Fetch(experts_pb2.FetchRequest(experts=experts), metadata=metadata):
                        pass
                assert await asyncio.to_thread(child.stop) == 0
    cold, warm = (receiver.tree(trace_id) for trace_id, _, _ in contexts)
    method = "premoe.experts.v1.ExpertStoreService/Fetch"
    assert cold.names() == [method, "fetch redis", "fetch object"]
    assert warm.names() == [method, "fetch redis"]

    def moved(name: str, tree: object) -> tuple[object, ...]:
        attributes = (cold if tree == "cold" else warm).find(name).span.attributes
        return tuple(attributes[f"premoe.fetch.{key}"] for key in ("source", "blobs", "bytes"))

    assert moved("fetch redis", "cold") == ("redis", 0, 0)
    assert moved("fetch object", "cold") == ("object", 3, 3 * 8192)
    assert moved("fetch redis", "warm") == ("redis", 3, 3 * 8192)
    assert warm.find("fetch redis").span.attributes["db.system.name"] == "redis"
    assert cold.span.attributes["premoe.fetch.bytes"] == 3 * 8192


CALLER = """
import asyncio, sys, threading
from premoe.experts.v1 import experts_pb2 as pb, experts_pb2_grpc
from premoe_servicekit.clients import blocking_channel, channel
from premoe_servicekit.deadlines import carried
from premoe_servicekit.telemetry import setup_telemetry, tracer

def in_a_thread(address):
    with blocking_channel(address) as plain:
        stub = experts_pb2_grpc.ExpertStoreServiceStub(plain)
        stub.GetManifest(pb.GetManifestRequest())
        list(stub.FetchFile(pb.FetchFileRequest(path="skeleton/config.json")))

async def main(address):
    with tracer().start_as_current_span("caller"):
        async with channel(address) as to_store:
            stub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
            await stub.GetManifest(pb.GetManifestRequest())
            async for _ in stub.Fetch(pb.FetchRequest(experts=[pb.ExpertId()])):
                pass
            try:
                await stub.GetManifest(pb.GetManifestRequest(model_id="nothing"))
            except Exception:
                pass
        worker = threading.Thread(target=carried(in_a_thread), args=(address,))
        worker.start()
        await asyncio.to_thread(worker.join)

telemetry = setup_telemetry("caller")
asyncio.run(main(sys.argv[1]))
telemetry.shutdown()
"""


def test_a_caller_its_threads_and_the_server_share_one_trace(receiver: OtlpReceiver, url: str) -> None:
    write_blob_pack(open_store(url))
    environment = exporting(receiver.endpoint)
    with serving("premoe_expert_store.cli", ["--store-url", url], environment) as child:
        command = [sys.executable, "-c", CALLER, child.address]
        subprocess.run(command, env=environ(environment), check=True, timeout=60)
        assert child.stop() == 0
    (trace_id,) = receiver.trace_ids()
    service = "premoe.experts.v1.ExpertStoreService"
    methods = ["GetManifest", "Fetch", "GetManifest", "GetManifest", "FetchFile"]
    tree = receiver.tree(trace_id)
    assert str(tree).splitlines() == [
        "caller [caller]",
        *(
            line
            for method in methods
            for line in (
                f"  {service}/{method} [caller]",
                f"    {service}/{method} [premoe-expert-store]",
                *(["      fetch object [premoe-expert-store]"] if method == "Fetch" else []),
            )
        ),
    ]
    assert [child.span.kind for child in tree.children] == [CLIENT] * 5
    codes = [(node.span.attributes["rpc.response.status_code"], node.span.status) for node in tree.children]
    assert codes == [("OK", 0), ("OK", 0), ("NOT_FOUND", 2), ("OK", 0), ("OK", 0)], "on the client every failure is one"
    server_side = tree.children[2].children[0].span
    assert (server_side.attributes["error.type"], server_side.status) == ("MODEL_NOT_FOUND", 0)
    assert tree.children[0].span.attributes["server.address"] == "127.0.0.1"


async def fetch_many(address: str, times: int) -> int:
    received = 0
    async with channel(address) as to_store:
        stub: experts_pb2_grpc.ExpertStoreServiceAsyncStub = experts_pb2_grpc.ExpertStoreServiceStub(to_store)
        for _ in range(times):
            async for frame in stub.Fetch(experts_pb2.FetchRequest(experts=[experts_pb2.ExpertId()])):
                received += len(frame.data)
    return received


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_dead_collector_costs_one_log_line(url: str, unused_tcp_port: int, protocol: str) -> None:
    write_blob_pack(open_store(url))
    environment = exporting(f"http://127.0.0.1:{unused_tcp_port}", protocol) | {"OTEL_BSP_SCHEDULE_DELAY": "50"}
    with serving("premoe_expert_store.cli", ["--store-url", url], environment) as child:
        assert await fetch_many(child.address, 50) == 50 * 8192
        assert await asyncio.to_thread(child.stop) == 0
        lines = child.stderr().splitlines()
    assert sum("does not answer; spans are dropped" in line for line in lines) == 1
    assert len(lines) == 1, lines


async def test_without_an_endpoint_nothing_is_exported_and_nothing_said(url: str, receiver: OtlpReceiver) -> None:
    write_blob_pack(open_store(url))
    with serving("premoe_expert_store.cli", ["--store-url", url]) as child:
        assert await fetch_many(child.address, 3) == 3 * 8192
        assert await asyncio.to_thread(child.stop) == 0
        assert child.stderr() == ""


async def test_a_sampler_that_drops_everything_is_obeyed(url: str, receiver: OtlpReceiver) -> None:
    write_blob_pack(open_store(url))
    environment = exporting(receiver.endpoint) | {"OTEL_TRACES_SAMPLER": "always_off"}
    with serving("premoe_expert_store.cli", ["--store-url", url], environment) as child:
        await fetch_many(child.address, 3)
        assert await asyncio.to_thread(child.stop) == 0
    assert receiver.spans() == []
