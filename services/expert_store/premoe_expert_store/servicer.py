"""ExpertStoreService over gRPC: unpack, call, pack."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf import timestamp_pb2
from opentelemetry import trace
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_dataplane.wire import TIERS
from premoe_servicekit.server import Registration, registration

from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.service import ExpertStore, Resolved
from premoe_runtime.formats.ids import ExpertId

SERVICE_NAME = "premoe.experts.v1.ExpertStoreService"
SCHEME = "grpc"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ExpertStoreServicer(experts_pb2_grpc.ExpertStoreServiceServicer):
    """Translates between the wire and ``ExpertStore``; errors become statuses in the kit's interceptor."""

    def __init__(self, store: ExpertStore, metrics: StoreMetrics) -> None:
        self._store = store
        self._metrics = metrics

    async def GetManifest(self, request: pb.GetManifestRequest, context: Context) -> pb.GetManifestResponse:
        with self._metrics.call():
            pack = await self._store.pack(request.model_id)
        return pb.GetManifestResponse(model_id=pack.manifest.model_id, manifest=pack.document)

    async def Resolve(self, request: pb.ResolveRequest, context: Context) -> pb.ResolveResponse:
        with self._metrics.call():
            resolved = await self._store.resolve(request.model_id, _experts(request.experts))
        _annotate(len(resolved.blobs), len(resolved.blobs) * resolved.num_bytes)
        return _resolve_response(resolved)

    async def Prefetch(self, request: pb.PrefetchRequest, context: Context) -> pb.PrefetchResponse:
        raise NotImplementedError

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        raise NotImplementedError

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        raise NotImplementedError

    def WatchStore(
        self, request: pb.WatchStoreRequest, context: Context
    ) -> AsyncGenerator[pb.WatchStoreResponse, None]:
        raise NotImplementedError

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> AsyncGenerator[pb.FetchResponse, None]:
        experts = _experts(request.experts)
        sent = 0
        try:
            with self._metrics.call():
                async with aclosing(self._store.fetch(request.model_id, experts, request.offset)) as frames:
                    async for frame in frames:
                        yield pb.FetchResponse(
                            index=frame.index, offset=frame.offset, data=bytes(frame.data), tier=TIERS[frame.tier]
                        )
                        sent += len(frame.data)
        finally:
            self._metrics.sent(sent)
            _annotate(len(experts), sent)

    async def FetchFile(
        self, request: pb.FetchFileRequest, context: Context
    ) -> AsyncGenerator[pb.FetchFileResponse, None]:
        with self._metrics.call():
            async with aclosing(self._store.fetch_file(request.model_id, request.path)) as frames:
                async for data in frames:
                    yield pb.FetchFileResponse(data=bytes(data))
                    self._metrics.sent(len(data))


def expert_store_service(store: ExpertStore, metrics: StoreMetrics) -> Registration:
    """The servicer, ready for a server."""
    return registration(
        SERVICE_NAME, ExpertStoreServicer(store, metrics), experts_pb2_grpc.add_ExpertStoreServiceServicer_to_server
    )


def _experts(ids: Iterable[pb.ExpertId]) -> list[ExpertId]:
    return [ExpertId(one.layer, one.expert) for one in ids]


def _resolve_response(resolved: Resolved) -> pb.ResolveResponse:
    expires_at = timestamp_pb2.Timestamp()
    expires_at.FromNanoseconds(int(resolved.expires_at * 1e9))
    blobs = [
        pb.BlobSources(
            expert=pb.ExpertId(layer=place.expert.layer, expert=place.expert.expert),
            digest=place.digest,
            sources=[pb.Source(tier=TIERS[tier], scheme=SCHEME, length=resolved.num_bytes) for tier in place.tiers],
        )
        for place in resolved.blobs
    ]
    return pb.ResolveResponse(blobs=blobs, lease_id=resolved.lease_id, expires_at=expires_at)


def _annotate(blobs: int, num_bytes: int) -> None:
    span = trace.get_current_span()
    span.set_attribute("premoe.fetch.blobs", blobs)
    span.set_attribute("premoe.fetch.bytes", num_bytes)
