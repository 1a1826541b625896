"""ExpertStoreService over gRPC: unpack, call, pack."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf import timestamp_pb2
from opentelemetry import trace
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_dataplane import frames
from premoe_dataplane.wire import TIERS, experts_of_wire, experts_to_wire, plan_to_wire
from premoe_servicekit.roles import caller
from premoe_servicekit.server import Registration

from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.ports import BlobsInvalid, Event, PackGone
from premoe_expert_store.service import ExpertStore

SERVICE_NAME = "premoe.experts.v1.ExpertStoreService"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ExpertStoreServicer(experts_pb2_grpc.ExpertStoreServiceServicer):
    """Translates between the wire and ``ExpertStore``; errors become statuses in the kit's interceptor.

    ``stopping`` ends watches, which else would keep the process until its grace is over.
    """

    def __init__(self, store: ExpertStore, metrics: StoreMetrics, stopping: asyncio.Event) -> None:
        self._store = store
        self._metrics = metrics
        self._stopping = stopping

    async def GetManifest(self, request: pb.GetManifestRequest, context: Context) -> pb.GetManifestResponse:
        with self._metrics.call():
            pack = await self._store.pack(request.model_id, caller())
        return pb.GetManifestResponse(model_id=pack.manifest.model_id, manifest=pack.document)

    async def Resolve(self, request: pb.ResolveRequest, context: Context) -> pb.ResolveResponse:
        experts = experts_of_wire(request.experts)
        with self._metrics.call():
            plan = await self._store.resolve(request.model_id, experts, tuple(request.schemes), caller())
        self._metrics.resolved(len(experts))
        _annotate(len(experts), sum(blob.num_bytes for blob in plan.blobs))
        return plan_to_wire(plan)

    async def Prefetch(self, request: pb.PrefetchRequest, context: Context) -> pb.PrefetchResponse:
        experts = experts_of_wire(request.experts)
        with self._metrics.call():
            counts = await self._store.prefetch(request.model_id, experts, caller())
        return pb.PrefetchResponse(present=counts.present, under_way=counts.under_way, refused=counts.refused)

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        with self._metrics.call():
            expires_at = timestamp_pb2.Timestamp()
            expires_at.FromNanoseconds(int(self._store.renew(request.lease_id, caller()) * 1e9))
        return pb.RenewResponse(expires_at=expires_at)

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        with self._metrics.call():
            self._store.release(request.lease_id, caller())
        return pb.ReleaseResponse()

    async def WatchStore(
        self, request: pb.WatchStoreRequest, context: Context
    ) -> AsyncGenerator[pb.WatchStoreResponse, None]:
        with self._metrics.call():
            async with aclosing(self._store.watch(request.model_id, caller())) as events:
                stopped = asyncio.ensure_future(self._stopping.wait())
                try:
                    while True:
                        event = asyncio.ensure_future(anext(events))
                        try:
                            await asyncio.wait((event, stopped), return_when=asyncio.FIRST_COMPLETED)
                        finally:
                            if not event.done():
                                event.cancel()
                                await asyncio.wait((event,))
                        if stopped.done():
                            return
                        yield _event_to_wire(event.result())
                finally:
                    stopped.cancel()

    async def Fetch(  # type: ignore[override]  # messages as they lie on the wire
        self, request: pb.FetchRequest, context: Context
    ) -> AsyncGenerator[bytes, None]:
        experts = experts_of_wire(request.experts)
        sent = 0
        try:
            with self._metrics.call():
                found = self._store.fetch(request.model_id, experts, request.offset, caller())
                async with aclosing(found):
                    async for frame in found:
                        yield frames.encode(frame.index, frame.offset, frame.data, frame.tier)
                        sent += len(frame.data)
        finally:
            self._metrics.sent(sent)
            _annotate(len(experts), sent)

    async def FetchFile(
        self, request: pb.FetchFileRequest, context: Context
    ) -> AsyncGenerator[pb.FetchFileResponse, None]:
        with self._metrics.call():
            async with aclosing(self._store.fetch_file(request.model_id, request.path, caller())) as parts:
                async for data in parts:
                    yield pb.FetchFileResponse(data=bytes(data))
                    self._metrics.sent(len(data))


def expert_store_service(store: ExpertStore, metrics: StoreMetrics, stopping: asyncio.Event) -> Registration:
    """The servicer, ready for a server. Fetch's frames are sent as they are, without the generated serializer."""
    servicer = ExpertStoreServicer(store, metrics, stopping)

    def add_to(server: grpc.aio.Server) -> None:
        fetch: grpc.RpcMethodHandler[pb.FetchRequest, bytes] = grpc.unary_stream_rpc_method_handler(
            servicer.Fetch, request_deserializer=pb.FetchRequest.FromString, response_serializer=None
        )
        experts_pb2_grpc.add_ExpertStoreServiceServicer_to_server(servicer, server)
        # Instead of the generated one: the last handler of a method is taken.
        server.add_registered_method_handlers(SERVICE_NAME, {"Fetch": fetch})

    return Registration(SERVICE_NAME, add_to)


def _event_to_wire(event: Event) -> pb.WatchStoreResponse:
    if isinstance(event, PackGone):
        return pb.WatchStoreResponse(pack_gone=pb.PackGone(message=event.message))
    if isinstance(event, BlobsInvalid):
        invalid = pb.BlobsInvalid(experts=experts_to_wire(event.experts), tier=TIERS[event.tier])
        return pb.WatchStoreResponse(blobs_invalid=invalid)
    progress = pb.StoreProgress(
        present=event.present,
        under_way=event.under_way,
        arrived_bytes=event.arrived_bytes,
        wanted_bytes=event.wanted_bytes,
    )
    return pb.WatchStoreResponse(progress=progress)


def _annotate(blobs: int, num_bytes: int) -> None:
    span = trace.get_current_span()
    span.set_attribute("premoe.fetch.blobs", blobs)
    span.set_attribute("premoe.fetch.bytes", num_bytes)
