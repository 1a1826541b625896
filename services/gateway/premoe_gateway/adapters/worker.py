"""A worker over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_servicekit.errors import rpc_errors

from premoe_gateway.adapters import messages
from premoe_gateway.domain import Ask, Event, PatternChoice, Probed, Recommended, Tokens, WorkerState
from premoe_runtime.formats.errors import Unavailable

_SERVICE = "premoe.worker.v1.WorkerService"
_STATE_TIMEOUT_S = 2.0
# Asked every second or so: as a parent it keeps these calls out of traces, here and on the worker.
_UNSAMPLED = trace.NonRecordingSpan(trace.SpanContext(trace_id=1, span_id=1, is_remote=False))


class GrpcWorker:
    """Implements `premoe_gateway.ports.Worker`. The channel stays the caller's to close."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self._address = address
        self._peer = f"worker {address}"
        self._worker = worker_pb2_grpc.WorkerServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._recommended = Recommended()

    @property
    def address(self) -> str:
        return self._address

    async def state(self) -> WorkerState:
        with rpc_errors(self._peer), trace.use_span(_UNSAMPLED):
            request = health_pb2.HealthCheckRequest(service=_SERVICE)
            health = await self._health.Check(request, timeout=_STATE_TIMEOUT_S)
            if health.status != health_pb2.HealthCheckResponse.SERVING:
                raise Unavailable(f"{self._peer} is not serving", reason="NOT_SERVING")
            residency = await self._worker.GetResidency(worker_pb2.GetResidencyRequest(), timeout=_STATE_TIMEOUT_S)
        state = messages.worker_state(self._address, residency)
        self._recommended = state.recommended
        return state

    async def probe(self, ask: Ask, timeout_s: float) -> Probed:
        with rpc_errors(self._peer):
            request = worker_pb2.ProbeRequest(prompt=messages.prompt_message(ask))
            response = await self._worker.Probe(request, timeout=timeout_s)
        earlier = tuple(tuple(each.values) for each in response.earlier)
        return Probed(response.weights_id, tuple(response.signature), tuple(response.alone), earlier)

    async def tokenize(self, ask: Ask, timeout_s: float, *, plain: bool) -> Tokens:
        with rpc_errors(self._peer):
            request = worker_pb2.TokenizeRequest(prompt=messages.prompt_message(ask), plain=plain, model=ask.model)
            response = await self._worker.Tokenize(request, timeout=timeout_s)
        return Tokens(tuple(response.ids), tuple(response.names), response.context_length)

    async def detokenize(self, model: str, ids: Sequence[int], *, skip_special: bool, timeout_s: float) -> str:
        with rpc_errors(self._peer):
            request = worker_pb2.DetokenizeRequest(ids=ids, skip_special=skip_special, model=model)
            response = await self._worker.Detokenize(request, timeout=timeout_s)
        return response.text

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        call = self._worker.Generate(messages.generate_request(ask, choice, self._recommended), timeout=timeout_s)
        try:
            with rpc_errors(self._peer):
                async for response in call:
                    yield messages.event(response)
        finally:
            call.cancel()
