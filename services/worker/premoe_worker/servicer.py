"""WorkerService and WorkerAdminService over gRPC: unpack, call, pack."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_servicekit.server import Registration, registration

from premoe_runtime.formats.errors import InvalidInput
from premoe_worker import messages
from premoe_worker.metrics import WorkerMetrics
from premoe_worker.residency import Preload
from premoe_worker.service import Worker

SERVICE_NAME = "premoe.worker.v1.WorkerService"
ADMIN_SERVICE_NAME = "premoe.worker.v1.WorkerAdminService"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Generation; errors become statuses in the kit's interceptor."""

    def __init__(self, worker: Worker, preload: Callable[[], Preload], metrics: WorkerMetrics) -> None:
        self._worker = worker
        self._preload = preload
        self._metrics = metrics

    async def Generate(
        self, request: worker_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[worker_pb2.GenerateResponse]:
        with self._metrics.request() as meter:
            async with aclosing(self._worker.generate(messages.ask(request))) as events:
                async for event in events:
                    meter.note(event)
                    yield messages.response(event)

    async def Probe(self, request: worker_pb2.ProbeRequest, context: Context) -> worker_pb2.ProbeResponse:
        signatures, tokens, milliseconds = await self._worker.probe(messages.asking(request.prompt))
        return worker_pb2.ProbeResponse(
            signature=signatures.whole.tolist(),
            weights_id=self._worker.model.manifest.weights_id,
            tokens=tokens,
            milliseconds=milliseconds,
            alone=() if signatures.alone is None else signatures.alone.tolist(),
            earlier=[patterns_pb2.Signature(values=each.tolist()) for each in signatures.earlier],
        )

    async def Tokenize(self, request: worker_pb2.TokenizeRequest, context: Context) -> worker_pb2.TokenizeResponse:
        asked = messages.asking(request.prompt)
        tokens = await self._worker.tokenize(asked, plain=request.plain, model=request.model)
        return worker_pb2.TokenizeResponse(ids=tokens.ids, names=tokens.names, context_length=tokens.context)

    async def Detokenize(
        self, request: worker_pb2.DetokenizeRequest, context: Context
    ) -> worker_pb2.DetokenizeResponse:
        text = await self._worker.detokenize(request.ids, skip_special=request.skip_special, model=request.model)
        return worker_pb2.DetokenizeResponse(text=text)

    async def GetResidency(
        self, request: worker_pb2.GetResidencyRequest, context: Context
    ) -> worker_pb2.GetResidencyResponse:
        model = self._worker.model
        return messages.residency(
            self._worker.residency(),
            model.manifest,
            self._worker.limits,
            self._preload(),
            name=self._worker.name,
            recommended=self._worker.recommended,
            context_length=model.engine.limits.context,
            split_problem=self._worker.split_problem,
            deny=self._worker.denies,
        )


class WorkerAdminServicer(worker_pb2_grpc.WorkerAdminServiceServicer):
    """Operations; ``draining`` is called once Drain begins, so that health can say so."""

    def __init__(self, worker: Worker, draining: Callable[[], Awaitable[None]], *, drain_s: float) -> None:
        self._worker = worker
        self._draining = draining
        self._drain_s = drain_s

    async def LoadPattern(
        self, request: worker_pb2.LoadPatternRequest, context: Context
    ) -> worker_pb2.LoadPatternResponse:
        _check_id(request.pattern_id)
        report = await self._worker.load_pattern(request.pattern_id)
        return worker_pb2.LoadPatternResponse(swap=messages.swap(report))

    async def UnloadPattern(
        self, request: worker_pb2.UnloadPatternRequest, context: Context
    ) -> worker_pb2.UnloadPatternResponse:
        _check_id(request.pattern_id)
        self._worker.unload_pattern(request.pattern_id)
        return worker_pb2.UnloadPatternResponse()

    async def Drain(self, request: worker_pb2.DrainRequest, context: Context) -> worker_pb2.DrainResponse:
        await self._draining()
        remaining = await self._worker.drain(request.timeout_s or self._drain_s)
        return worker_pb2.DrainResponse(remaining=remaining)

    async def CheckIntegrity(
        self, request: worker_pb2.CheckIntegrityRequest, context: Context
    ) -> worker_pb2.CheckIntegrityResponse:
        await self._worker.check_integrity()
        return worker_pb2.CheckIntegrityResponse()


def worker_service(worker: Worker, metrics: WorkerMetrics, preload: Callable[[], Preload] = Preload) -> Registration:
    """The servicer, ready for a server; ``preload`` says what became of the tasks to keep resident."""
    servicer = WorkerServicer(worker, preload, metrics)
    return registration(SERVICE_NAME, servicer, worker_pb2_grpc.add_WorkerServiceServicer_to_server)


def admin_service(worker: Worker, draining: Callable[[], Awaitable[None]], *, drain_s: float) -> Registration:
    """The admin servicer, ready for a server of its own."""
    return registration(
        ADMIN_SERVICE_NAME,
        WorkerAdminServicer(worker, draining, drain_s=drain_s),
        worker_pb2_grpc.add_WorkerAdminServiceServicer_to_server,
    )


def _check_id(pattern_id: str) -> None:
    if not pattern_id:
        raise InvalidInput("pattern_id is empty", reason="PATTERN_MISSING")
