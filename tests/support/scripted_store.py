"""ExpertStoreService with behaviour given by a test, on a real server of the kit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_servicekit.server import RpcServer, registration
from premoe_servicekit.settings import ServerSettings
from premoe_servicekit.tls import tls_of

SERVICE = "premoe.experts.v1.ExpertStoreService"

Unary: TypeAlias = Callable[[], Awaitable[bytes]]
Stream: TypeAlias = Callable[[], AsyncIterator[bytes]]


async def nothing() -> bytes:
    return b""


async def no_frames() -> AsyncIterator[bytes]:
    return
    yield


class EarlierStore(experts_pb2_grpc.ExpertStoreServiceServicer):
    """What stores of before leases, prefetches and watches do not answer."""

    def Prefetch(self, request: pb.PrefetchRequest, context: Any) -> pb.PrefetchResponse:
        raise NotImplementedError

    def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewResponse:
        raise NotImplementedError

    def Release(self, request: pb.ReleaseRequest, context: Any) -> pb.ReleaseResponse:
        raise NotImplementedError

    def WatchStore(self, request: pb.WatchStoreRequest, context: Any) -> AsyncIterator[pb.WatchStoreResponse]:
        raise NotImplementedError


class ScriptedStore(EarlierStore):
    """GetManifest answers with ``unary()``, Fetch with the frames of ``stream()``; the rest is unimplemented."""

    def __init__(self, unary: Unary = nothing, stream: Stream = no_frames) -> None:
        self.unary = unary
        self.stream = stream
        self.calls = 0

    async def GetManifest(self, request: pb.GetManifestRequest, context: Any) -> pb.GetManifestResponse:
        self.calls += 1
        return pb.GetManifestResponse(manifest=await self.unary())

    def Resolve(self, request: pb.ResolveRequest, context: Any) -> pb.ResolveResponse:
        raise NotImplementedError

    async def Fetch(self, request: pb.FetchRequest, context: Any) -> AsyncIterator[pb.FetchResponse]:
        self.calls += 1
        async for data in self.stream():
            yield pb.FetchResponse(data=data)

    def FetchFile(self, request: pb.FetchFileRequest, context: Any) -> AsyncIterator[pb.FetchFileResponse]:
        raise NotImplementedError


@asynccontextmanager
async def scripted(store: ScriptedStore, settings: ServerSettings | None = None) -> AsyncIterator[RpcServer]:
    """A serving server; stopped at once at the end unless the test did it."""
    added = registration(SERVICE, store, experts_pb2_grpc.add_ExpertStoreServiceServicer_to_server)
    settings = settings or ServerSettings()
    server = RpcServer([added], settings, tls=tls_of(settings))
    await server.start()
    await server.set_serving(True)
    try:
        yield server
    finally:
        await server.stop(0)
