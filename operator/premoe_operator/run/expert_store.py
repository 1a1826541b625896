"""The expert store's GetManifest, by gRPC with a short deadline."""

from __future__ import annotations

import grpc
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc
from premoe_servicekit.clients import channel
from premoe_servicekit.tls import Tls

from premoe_operator.api.reasons import Reason
from premoe_operator.decide.observed import PackFacts, StoreFailure
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.manifest import Manifest


class GrpcExpertStore:
    """Implements ``reconciler.ExpertStore``. No connection is kept: a manifest is read once for each pack."""

    def __init__(self, own_address: str, *, timeout_s: float, tls: Tls | None) -> None:
        self._own_address = own_address
        self._timeout_s = timeout_s
        self._tls = tls

    async def facts(self, address: str, model_id: str) -> PackFacts | StoreFailure:
        request = experts_pb2.GetManifestRequest(model_id=model_id)
        try:
            async with channel(address, tls=self._tls_for(address)) as opened:
                stub = experts_pb2_grpc.ExpertStoreServiceStub(opened)
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
            skeleton_bytes=sum(file.num_bytes for file in manifest.skeleton),
        )

    def _tls_for(self, address: str) -> Tls | None:
        """Another release's store has its own name in its certificate, not that of our release."""
        is_own = address == self._own_address
        return self._tls if is_own or self._tls is None else self._tls.expecting(address.rpartition(":")[0])


def _failure(error: grpc.aio.AioRpcError, address: str, model_id: str) -> StoreFailure:
    detail = " ".join((error.details() or error.code().name).split())
    if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INVALID_ARGUMENT):
        return StoreFailure(Reason.MANIFEST_NOT_FOUND, f"the expert store {address} has no {model_id}: {detail}")
    return StoreFailure(Reason.STORE_UNREACHABLE, f"the expert store {address} did not answer: {detail}")
