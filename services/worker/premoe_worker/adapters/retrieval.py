"""The retrieval service over gRPC: decisions for signatures, and rankings by immutable id."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import grpc
from premoe.patterns.v1 import patterns_pb2, patterns_pb2_grpc
from premoe_servicekit.deadlines import bounded
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.rankings import read_ranking

from premoe_runtime.formats.choices import DecisionKind, OnUnknown
from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.ranking import Ranking
from premoe_runtime.formats.signature import Signatures
from premoe_worker.domain import PatternChoice

_CACHED_RANKINGS = 1024

DECISIONS: dict[patterns_pb2.Decision.ValueType, DecisionKind] = {
    patterns_pb2.DECISION_SPECIALIST: "specialist",
    patterns_pb2.DECISION_GENERALIST: "generalist",
    patterns_pb2.DECISION_FULL: "full",
    patterns_pb2.DECISION_REJECT: "reject",
}
POLICIES: dict[OnUnknown, patterns_pb2.OnUnknown.ValueType] = {
    "generalist": patterns_pb2.ON_UNKNOWN_GENERALIST,
    "full": patterns_pb2.ON_UNKNOWN_FULL,
    "reject": patterns_pb2.ON_UNKNOWN_REJECT,
}


class GrpcRetrieval:
    """Implements `premoe_worker.ports.Retrieval`. The channel stays the caller's to close."""

    def __init__(self, address: str, channel: grpc.aio.Channel, *, timeout_s: float = 10.0) -> None:
        self._peer = f"retrieval {address}"
        self._stub = patterns_pb2_grpc.PatternServiceStub(channel)
        self._timeout_s = timeout_s
        self._rankings: OrderedDict[str, Ranking] = OrderedDict()

    async def retrieve(self, weights_id: str, signatures: Signatures, on_unknown: OnUnknown) -> PatternChoice:
        request = patterns_pb2.RetrieveRequest(
            weights_id=weights_id,
            signature=signatures.whole.tolist(),
            alone=() if signatures.alone is None else signatures.alone.tolist(),
            earlier=[patterns_pb2.Signature(values=each.tolist()) for each in signatures.earlier],
            on_unknown=POLICIES[on_unknown],
        )
        with rpc_errors(self._peer):
            response = await self._stub.Retrieve(request, timeout=bounded(self._timeout_s))
        if response.decision not in DECISIONS:
            raise Unavailable(f"{self._peer}: unknown decision {response.decision}", reason="UNKNOWN_DECISION")
        return PatternChoice(
            DECISIONS[response.decision], response.pattern_id, response.task, response.score, response.reason
        )

    async def ranking(self, pattern_id: str) -> Ranking:
        known = self._rankings.get(pattern_id)
        if known is not None:
            self._rankings.move_to_end(pattern_id)
            return known
        with rpc_errors(self._peer):
            request = patterns_pb2.GetPatternRequest(pattern_id=pattern_id)
            response = await self._stub.GetPattern(request, timeout=bounded(self._timeout_s))
        ranking = read_ranking(response, self._peer)
        self._rankings[pattern_id] = ranking
        if len(self._rankings) > _CACHED_RANKINGS:
            self._rankings.popitem(last=False)
        return ranking

    def task(self, pattern_id: str) -> str:
        """The task of a pattern whose ranking was asked for lately; empty for others."""
        known = self._rankings.get(pattern_id)
        return "" if known is None else known.task

    async def generalist(self, weights_id: str) -> str:
        return (await self._live_set(weights_id)).generalist_id

    async def live_tasks(self, weights_id: str) -> Mapping[str, str]:
        return {pattern.task: pattern.pattern_id for pattern in (await self._live_set(weights_id)).patterns}

    async def layer_slots(self, weights_id: str, kept: int, spare: int) -> tuple[int, ...]:
        return tuple((await self._live_set(weights_id, kept, spare)).layer_slots)

    async def first_pattern(self, weights_id: str) -> str:
        live = await self._live_set(weights_id)
        return live.generalist_id or next((pattern.pattern_id for pattern in live.patterns), "")

    async def _live_set(self, weights_id: str, kept: int = 0, spare: int = 0) -> patterns_pb2.ListPatternsResponse:
        with rpc_errors(self._peer):
            request = patterns_pb2.ListPatternsRequest(weights_id=weights_id, kept=kept, spare=spare)
            return await self._stub.ListPatterns(request, timeout=bounded(self._timeout_s))
