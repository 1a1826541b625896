"""The data plane's own ways to read, over a real expert store, Redis and an object server."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import grpc
from _data_ways import Blobs, Way, ours
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_dataplane.blob_cache import blob_key
from premoe_dataplane.plan import BlobPlan, Source
from premoe_dataplane.redis_cache import RedisCache
from premoe_dataplane.transports.base import Transport
from premoe_dataplane.transports.file import FileTransport
from premoe_dataplane.transports.http import HttpTransport
from premoe_dataplane.transports.objects import ObjectTransport
from premoe_dataplane.transports.redis import RedisTransport
from premoe_dataplane.transports.stream import StreamTransport
from premoe_dataplane.wire import experts_to_wire, plan_of_wire
from support.processes import serving
from support.servers import RedisServer

from premoe_runtime.formats.pieces import Hole
from premoe_runtime.storage import Store, open_store

STORE = "premoe_expert_store.cli"


def our_ways(stack: ExitStack, blobs: Blobs, redis: RedisServer, object_server: tuple[int, int]) -> list[Way]:
    """Each scheme as it is, and with every piece checked."""
    flags = ["--store-url", blobs.url, "--cache-dir", str(blobs.memory.parent / "cache"), "--http-port", "0"]
    flags += ["--cache-bytes", str(2 * blobs.num_bytes * len(blobs))]
    store = stack.enter_context(serving(STORE, flags))
    channel = stack.enter_context(grpc.insecure_channel(store.address))
    resolved = {scheme: resolve(channel, blobs, scheme) for scheme in ("grpc", "file", "http")}
    fill(redis.url, blobs)
    port, object_pid = object_server
    pid, model_id = store.process.pid, blobs.pack.model_id
    found: list[tuple[Transport, list[BlobPlan], str, tuple[float, float], tuple[int, ...]]] = [
        (FileTransport(), resolved["file"], "memcpy", (0.9, 0.65), ()),
        (HttpTransport(), resolved["http"], "raw TCP", (0.75, 0.55), (pid,)),
        (RedisTransport(redis.url), in_redis(resolved["grpc"]), "raw TCP", (0.5, 0.5), (redis.process.pid,)),
        (
            StreamTransport(channel, store.address, lambda: model_id),
            resolved["grpc"],
            "raw TCP",
            (0.18, 0.18),
            (pid,),
        ),
        (
            ObjectTransport(open_objects(port)),
            in_objects(resolved["grpc"]),
            "object server",
            (0.3, 0.3),
            (object_pid,),
        ),
    ]
    ways = []
    for transport, plans, reference, targets, servers in found:
        stack.callback(transport.close)
        for checked, target in zip((False, True), targets, strict=True):
            name = f"{transport.scheme} checked" if checked else transport.scheme
            ways.append(Way(name, ours(transport, plans, checked=checked), reference, target, servers))
    return ways


def resolve(channel: grpc.Channel, blobs: Blobs, scheme: str) -> list[BlobPlan]:
    """The plans of all blobs by one scheme, once they lie in the store's cache."""
    stub = experts_pb2_grpc.ExpertStoreServiceStub(channel)
    wanted = experts_to_wire(blobs.experts)
    for _ in stub.Fetch(pb.FetchRequest(model_id=blobs.pack.model_id, experts=wanted)):
        pass
    request = pb.ResolveRequest(model_id=blobs.pack.model_id, experts=wanted, schemes=[scheme])
    plan = plan_of_wire(stub.Resolve(request), blobs.experts, blobs.num_bytes, "the store")
    return [only(blob, lambda source: source.scheme == scheme) for blob in plan.blobs]


def only(blob: BlobPlan, chosen: Callable[[Source], bool]) -> BlobPlan:
    return replace(blob, sources=tuple(filter(chosen, blob.sources)))


def fill(url: str, blobs: Blobs) -> None:
    cache = RedisCache(url)
    for expert, blob in blobs.pack.blobs.items():
        cache.write(blobs.pack.manifest.digest(expert), memoryview(blob), [Hole(0, len(blob))])
    cache.close()


def in_redis(plans: list[BlobPlan]) -> list[BlobPlan]:
    return [replace(blob, sources=(Source("redis", "redis", blob_key(blob.digest)),)) for blob in plans]


def in_objects(plans: list[BlobPlan]) -> list[BlobPlan]:
    return [replace(blob, sources=(Source("object", "object", blob.digest),)) for blob in plans]


def open_objects(port: int, bucket: str = "blobs") -> Store:
    """The object server without signatures."""
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "us-east-1",
    }
    return open_store(f"s3://{bucket}")
