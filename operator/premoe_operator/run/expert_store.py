"""The expert store's GetManifest, by gRPC with a short deadline."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import grpc
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc
from premoe_servicekit.clients import channel
from premoe_servicekit.tls import Tls

from premoe_operator.api.reasons import Reason
from premoe_operator.decide.observed import PackFacts, StoreFailure
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.manifest import Manifest


class GrpcExpertStore:
    """Implements ``reconciler.ExpertStore``. Channels are kept; there are as many as stores that specs name."""

    def __init__(self, *, timeout_s: float, tls: Tls | None) -> None:
        self._timeout_s = timeout_s
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in self._channels.values():
            await opened.close()
        self._channels.clear()

    async def facts(self, address: str, model_id: str) -> PackFacts | StoreFailure:
        stub = experts_pb2_grpc.ExpertStoreServiceStub(self._channel(address))
        request = experts_pb2.GetManifestRequest(model_id=model_id)
        try:
            answer = await stub.GetManifest(request, timeout=self._timeout_s)
            manifest = Manifest.parse(answer.manifest, where=f"manifest of {model_id}")
        except grpc.aio.AioRpcError as error:
            return _failure(error, address, model_id)
        except CorruptData as error:
            return StoreFailure(Reason.MANIFEST_NOT_FOUND, str(error))
        return PackFacts(
            model_id=model_id,
            family=manifest.family,
            layer_experts=manifest.layer_experts,
            top_k=manifest.top_k,
            blob_bytes=manifest.layout.blob_bytes,
        )

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = channel(address, tls=self._tls)
        return self._channels[address]


def _failure(error: grpc.aio.AioRpcError, address: str, model_id: str) -> StoreFailure:
    detail = " ".join((error.details() or error.code().name).split())
    if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INVALID_ARGUMENT):
        return StoreFailure(Reason.MANIFEST_NOT_FOUND, f"the expert store {address} has no {model_id}: {detail}")
    return StoreFailure(Reason.STORE_UNREACHABLE, f"the expert store {address} did not answer: {detail}")
