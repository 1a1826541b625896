"""A worker and a retrieval service without a model, for tests of the gateway: real gRPC servers, scripted answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from premoe.patterns.v1 import patterns_pb2, patterns_pb2_grpc
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_servicekit.abilities import ABILITIES
from premoe_servicekit.server import RpcServer, registration
from premoe_servicekit.settings import ServerSettings
from premoe_servicekit.tls import tls_of

from premoe_runtime.formats.errors import NotFound, PremoeError

WEIGHTS = "w" * 64
MODEL = "tiny"
GenerateContext = grpc.aio.ServicerContext[worker_pb2.GenerateRequest, worker_pb2.GenerateResponse]


@dataclass
class FakeWorker(worker_pb2_grpc.WorkerServiceServicer):
    """Answers every prompt with ``words``; remembers what it was asked."""

    words: tuple[str, ...] = ("one", " two", " three")
    model: str = MODEL
    waiting: int = 0
    preload: tuple[str, ...] = ()
    preloaded: tuple[str, ...] = ()
    preload_problem: str = ""
    recommended: worker_pb2.Sampling | None = None
    abilities: tuple[str, ...] = ABILITIES
    fault: PremoeError | None = None
    fault_after: int = 0
    """Deltas before ``fault``; 0 raises it before the first event."""
    hold: asyncio.Event | None = None
    """Set: the answer waits for it after its first delta."""
    requests: list[worker_pb2.GenerateRequest] = field(default_factory=list)
    probes: list[worker_pb2.ProbeRequest] = field(default_factory=list)
    cancellations: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def Generate(
        self, request: worker_pb2.GenerateRequest, context: GenerateContext
    ) -> AsyncIterator[worker_pb2.GenerateResponse]:
        self.requests.append(request)
        if self.fault is not None and self.fault_after == 0:
            raise self.fault
        swap = worker_pb2.Swap(blobs_loaded=3, bytes_loaded=12288, milliseconds=1.5)
        started = worker_pb2.Started(pattern=request.pattern, prompt_tokens=7, swap=swap)
        yield worker_pb2.GenerateResponse(started=started)
        try:
            for number, word in enumerate(self.words):
                if self.fault is not None and number == self.fault_after:
                    raise self.fault
                yield worker_pb2.GenerateResponse(delta=worker_pb2.Delta(text=word, token_ids=[number]))
                if self.hold is not None:
                    await self.hold.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            self.cancellations += 1
            raise
        finished = worker_pb2.Finished(
            reason=worker_pb2.FINISH_REASON_STOP,
            prompt_tokens=7,
            completion_tokens=len(self.words),
            retained_mass=0.75,
            first_token_ms=4.0,
            decode_ms=8.0,
            numbers="FP8, dequantised to BF16",
        )
        yield worker_pb2.GenerateResponse(finished=finished)

    async def Probe(
        self, request: worker_pb2.ProbeRequest, context: grpc.aio.ServicerContext[worker_pb2.ProbeRequest, object]
    ) -> worker_pb2.ProbeResponse:
        self.probes.append(request)
        signature = np.full(4, 0.5, np.float32).tolist()
        answer = worker_pb2.ProbeResponse(signature=signature, weights_id=WEIGHTS, tokens=5, milliseconds=1.0)
        if before := request.prompt.chat.messages[:-1]:
            answer.alone.extend(np.eye(4)[-1])
            answer.earlier.extend(patterns_pb2.Signature(values=np.eye(4)[0]) for turn in before if turn.role == "user")
        return answer

    async def Tokenize(self, request: worker_pb2.TokenizeRequest, context: object) -> worker_pb2.TokenizeResponse:
        ids = request.prompt.text.encode()
        return worker_pb2.TokenizeResponse(ids=ids, names=map(chr, ids), context_length=256)

    async def Detokenize(self, request: worker_pb2.DetokenizeRequest, context: object) -> worker_pb2.DetokenizeResponse:
        return worker_pb2.DetokenizeResponse(text=bytes(request.ids).decode(errors="replace"))

    async def GetResidency(
        self,
        request: worker_pb2.GetResidencyRequest,
        context: grpc.aio.ServicerContext[worker_pb2.GetResidencyRequest, object],
    ) -> worker_pb2.GetResidencyResponse:
        return worker_pb2.GetResidencyResponse(
            weights_id=WEIGHTS,
            model_name=self.model,
            slots_per_layer=6,
            experts_per_layer=16,
            context_length=256,
            budget="2/4",
            waiting=self.waiting,
            preload=self.preload,
            preloaded=self.preloaded,
            preload_problem=self.preload_problem,
            recommended=self.recommended,
            abilities=self.abilities,
        )


@dataclass
class FakeRetrieval(patterns_pb2_grpc.PatternServiceServicer):
    """Recognises every signature as task ``add``, or does what ``decision`` says."""

    decision: patterns_pb2.Decision.ValueType = patterns_pb2.DECISION_SPECIALIST
    fault: PremoeError | None = None
    requests: list[patterns_pb2.RetrieveRequest] = field(default_factory=list)

    async def Retrieve(
        self,
        request: patterns_pb2.RetrieveRequest,
        context: grpc.aio.ServicerContext[patterns_pb2.RetrieveRequest, object],
    ) -> patterns_pb2.RetrieveResponse:
        self.requests.append(request)
        if self.fault is not None:
            raise self.fault
        names = {patterns_pb2.DECISION_SPECIALIST: "p-add", patterns_pb2.DECISION_GENERALIST: "p-gen"}
        return patterns_pb2.RetrieveResponse(
            decision=self.decision,
            pattern_id=names.get(self.decision, ""),
            task="add",
            score=0.875,
            reason="scripted",
            set_id="s",
        )

    async def ListPatterns(
        self,
        request: patterns_pb2.ListPatternsRequest,
        context: grpc.aio.ServicerContext[patterns_pb2.ListPatternsRequest, object],
    ) -> patterns_pb2.ListPatternsResponse:
        kinds = {
            "add": patterns_pb2.PATTERN_KIND_SPECIALIST,
            "rev": patterns_pb2.PATTERN_KIND_SPECIALIST,
            "gen": patterns_pb2.PATTERN_KIND_GENERALIST,
        }
        patterns = [
            patterns_pb2.Pattern(
                pattern_id=f"p-{task}", task="generalist" if task == "gen" else task, kind=kind, weights_id=WEIGHTS
            )
            for task, kind in kinds.items()
        ]
        return patterns_pb2.ListPatternsResponse(set_id="s", patterns=patterns, generalist_id="p-gen")

    async def GetPattern(self, request: object, context: object) -> patterns_pb2.GetPatternResponse:
        raise NotFound("scripted retrieval has no rankings")

    async def PublishSet(self, request: object, context: object) -> patterns_pb2.PublishSetResponse:
        raise NotFound("scripted retrieval has no sets")

    async def SetLive(self, request: object, context: object) -> patterns_pb2.SetLiveResponse:
        raise NotFound("scripted retrieval has no sets")

    async def DeleteSet(self, request: object, context: object) -> patterns_pb2.DeleteSetResponse:
        raise NotFound("scripted retrieval has no sets")

    async def ListSignatures(self, request: object, context: object) -> patterns_pb2.ListSignaturesResponse:
        raise NotFound("scripted retrieval has no sets")


@asynccontextmanager
async def serving(
    servicer: FakeWorker | FakeRetrieval, *, healthy: bool = True, settings: ServerSettings | None = None
) -> AsyncIterator[RpcServer]:
    """Serve one of them on a free port, under mutual TLS if the settings say so."""
    if isinstance(servicer, FakeWorker):
        entry = registration(
            "premoe.worker.v1.WorkerService", servicer, worker_pb2_grpc.add_WorkerServiceServicer_to_server
        )
    else:
        entry = registration(
            "premoe.patterns.v1.PatternService", servicer, patterns_pb2_grpc.add_PatternServiceServicer_to_server
        )
    settings = settings or ServerSettings(port=0)
    server = RpcServer([entry], settings, tls=tls_of(settings))
    await server.start()
    await server.set_serving(healthy)
    try:
        yield server
    finally:
        await server.stop(0)


async def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait until ``condition()`` holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the condition lies in another thread or process
