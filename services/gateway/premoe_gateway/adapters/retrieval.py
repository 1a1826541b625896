"""The retrieval service over gRPC."""

from __future__ import annotations

import grpc
from premoe.patterns.v1 import patterns_pb2, patterns_pb2_grpc
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.rankings import read_ranking

from premoe_gateway.adapters import messages
from premoe_gateway.domain import PatternChoice, Probed, StoredPattern
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.ranking import Ranking


class GrpcRetrieval:
    """Implements `premoe_gateway.ports.Retrieval`. The channel stays the caller's to close."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self._peer = f"retrieval {address}"
        self._stub = patterns_pb2_grpc.PatternServiceStub(channel)

    async def retrieve(self, probed: Probed, on_unknown: OnUnknown | None, timeout_s: float) -> PatternChoice:
        request = patterns_pb2.RetrieveRequest(
            weights_id=probed.weights_id,
            signature=probed.signature,
            alone=probed.alone,
            earlier=[patterns_pb2.Signature(values=each) for each in probed.earlier],
            on_unknown=messages.policy(on_unknown),
        )
        with rpc_errors(self._peer):
            response = await self._stub.Retrieve(request, timeout=timeout_s)
        return PatternChoice(
            messages.decision(response.decision), response.pattern_id, response.task, response.score, response.reason
        )

    async def ranking(self, pattern_id: str, timeout_s: float) -> Ranking:
        with rpc_errors(self._peer):
            request = patterns_pb2.GetPatternRequest(pattern_id=pattern_id)
            response = await self._stub.GetPattern(request, timeout=timeout_s)
        return read_ranking(response, self._peer)

    async def patterns(self, weights_id: str, timeout_s: float) -> tuple[StoredPattern, ...]:
        with rpc_errors(self._peer):
            request = patterns_pb2.ListPatternsRequest(weights_id=weights_id)
            response = await self._stub.ListPatterns(request, timeout=timeout_s)
        return tuple(
            StoredPattern(pattern.pattern_id, pattern.task, pattern.kind == patterns_pb2.PATTERN_KIND_GENERALIST)
            for pattern in response.patterns
        )
