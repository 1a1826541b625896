"""PatternService over gRPC: unpack, call, pack."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
import numpy as np
from opentelemetry import trace
from premoe.patterns.v1 import patterns_pb2 as pb
from premoe.patterns.v1 import patterns_pb2_grpc
from premoe_servicekit.metrics import Metrics
from premoe_servicekit.server import Registration, registration
from premoe_servicekit.signatures import read_signatures

from premoe_retrieval.metrics import RetrievalMetrics
from premoe_retrieval.recorder import Recorded
from premoe_retrieval.service import PatternService
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern import Pattern, PatternKind
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Decision

SERVICE_NAME = "premoe.patterns.v1.PatternService"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_POLICIES: dict[int, OnUnknown | None] = {
    pb.ON_UNKNOWN_UNSPECIFIED: None,
    pb.ON_UNKNOWN_GENERALIST: "generalist",
    pb.ON_UNKNOWN_FULL: "full",
    pb.ON_UNKNOWN_REJECT: "reject",
}
_DECISIONS = {
    "specialist": pb.DECISION_SPECIALIST,
    "generalist": pb.DECISION_GENERALIST,
    "full": pb.DECISION_FULL,
    "reject": pb.DECISION_REJECT,
}
_KINDS: dict[PatternKind, pb.PatternKind.ValueType] = {
    "specialist": pb.PATTERN_KIND_SPECIALIST,
    "generalist": pb.PATTERN_KIND_GENERALIST,
}


class PatternServicer(patterns_pb2_grpc.PatternServiceServicer):
    """Translates between the wire and ``PatternService``; errors become statuses in the kit's interceptor."""

    def __init__(self, service: PatternService, metrics: RetrievalMetrics | None = None) -> None:
        self._service = service
        self._metrics = metrics or RetrievalMetrics(Metrics())

    async def Retrieve(self, request: pb.RetrieveRequest, context: Context) -> pb.RetrieveResponse:
        if request.on_unknown not in _POLICIES:
            raise InvalidInput(f"on_unknown {request.on_unknown} is unknown", reason="POLICY_INVALID")
        with self._metrics.query():
            retrieved = await self._service.retrieve(
                request.weights_id,
                read_signatures(request),
                set_id=request.set_id,
                on_unknown=_POLICIES[request.on_unknown],
            )
        decision = retrieved.decision
        self._metrics.decided(decision, retrieved.exemplars)
        _annotate(decision, retrieved.neighbours)
        return pb.RetrieveResponse(
            decision=_DECISIONS[decision.kind],
            pattern_id=decision.pattern_id,
            task=decision.task,
            score=decision.score,
            reason=decision.reason,
            set_id=retrieved.set_id,
            matches=[
                pb.Match(pattern_id=match.pattern_id, task=match.task, score=match.score, cutoff=match.cutoff)
                for match in decision.matches
            ],
        )

    async def PublishSet(self, request: pb.PublishSetRequest, context: Context) -> pb.PublishSetResponse:
        exemplars, already = await self._service.publish_set(request.set_id)
        return pb.PublishSetResponse(exemplars=exemplars, already=already)

    async def SetLive(self, request: pb.SetLiveRequest, context: Context) -> pb.SetLiveResponse:
        previous = await self._service.set_live(request.weights_id, request.set_id)
        return pb.SetLiveResponse(previous_set_id=previous)

    async def GetPattern(self, request: pb.GetPatternRequest, context: Context) -> pb.GetPatternResponse:
        pattern = await self._service.pattern(request.pattern_id)
        scores = np.take_along_axis(pattern.scores, pattern.ranking.astype(np.intp), axis=1)
        layers = [
            pb.LayerRanking(experts=experts[:count].tolist(), scores=values[:count].tolist())
            for experts, values, count in zip(pattern.ranking, scores, pattern.layer_experts, strict=True)
        ]
        return pb.GetPatternResponse(pattern=_pattern(request.pattern_id, pattern), layers=layers)

    async def ListPatterns(self, request: pb.ListPatternsRequest, context: Context) -> pb.ListPatternsResponse:
        set_id, pattern_set = await self._service.list_patterns(request.set_id, request.weights_id)
        slots = pattern_set.layer_slots(request.kept, request.spare) if request.kept else None
        return pb.ListPatternsResponse(
            set_id=set_id,
            patterns=_members(pattern_set),
            generalist_id=pattern_set.generalist_id or "",
            weights_id=pattern_set.weights_id,
            layer_slots=slots or (),
        )

    async def DeleteSet(self, request: pb.DeleteSetRequest, context: Context) -> pb.DeleteSetResponse:
        return pb.DeleteSetResponse(existed=await self._service.delete_set(request.set_id))

    async def ListSignatures(self, request: pb.ListSignaturesRequest, context: Context) -> pb.ListSignaturesResponse:
        if not request.weights_id:
            raise InvalidInput("weights_id is empty; say which weights made the signatures", reason="WEIGHTS_MISSING")
        recorder = self._service.recorder
        return pb.ListSignaturesResponse(
            signatures=map(_recorded, recorder.page(request.weights_id, request.after)), capacity=recorder.capacity
        )


def pattern_service(service: PatternService, metrics: RetrievalMetrics | None = None) -> Registration:
    """The servicer, ready for a server."""
    return registration(
        SERVICE_NAME, PatternServicer(service, metrics), patterns_pb2_grpc.add_PatternServiceServicer_to_server
    )


def _pattern(pattern_id: str, pattern: Pattern) -> pb.Pattern:
    return pb.Pattern(
        pattern_id=pattern_id,
        task=pattern.task,
        kind=_KINDS[pattern.kind],
        weights_id=pattern.weights_id,
        metric=pattern.metric,
        semantics=pattern.semantics,
        allocation=pattern.allocation,
    )


def _members(pattern_set: PatternSet) -> list[pb.Pattern]:
    document = pattern_set.document
    return [
        pb.Pattern(
            pattern_id=member.pattern_id,
            task=member.task,
            kind=_KINDS[member.kind],
            weights_id=document.weights_id,
            metric=document.metric,
            semantics=document.semantics,
            allocation=pattern_set.allocation,
        )
        for member in pattern_set.members
    ]


def _recorded(each: Recorded) -> pb.RecordedSignature:
    decision = each.decision
    return pb.RecordedSignature(
        number=each.number,
        unix_ms=round(each.at * 1000),
        set_id=each.set_id,
        signature=each.signatures.whole.tolist(),
        alone=() if each.signatures.alone is None else each.signatures.alone.tolist(),
        earlier=[pb.Signature(values=signature.tolist()) for signature in each.signatures.earlier],
        decision=_DECISIONS[decision.kind],
        task=decision.task,
        score=decision.score,
    )


def _annotate(decision: Decision, neighbours: int) -> None:
    span = trace.get_current_span()
    span.set_attribute("premoe.retrieval.decision", decision.kind)
    span.set_attribute("premoe.retrieval.score", decision.score)
    span.set_attribute("premoe.retrieval.top_k", neighbours)
    span.set_attribute("premoe.retrieval.fallback", not decision.recognised)
