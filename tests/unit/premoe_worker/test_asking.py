"""What a prompt says is read alike for an answer, a probe and its tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from premoe.worker.v1 import worker_pb2
from premoe_worker.domain import Ask, Tool, Turn
from premoe_worker.limits import Limits
from premoe_worker.metrics import WorkerMetrics
from premoe_worker.model import Encoded, ServedModel
from premoe_worker.residency import Preload
from premoe_worker.service import Worker
from premoe_worker.servicer import WorkerServicer
from premoe_worker.tools.formats import ToolUse

from premoe_runtime.engines.base import RequestLimits
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.serving.admission import Admission

PROMPT = worker_pb2.Prompt(
    chat=worker_pb2.Chat(
        messages=[worker_pb2.Message(role="user", content="1+1")],
        tools=[worker_pb2.Tool(name="add", description="adds", parameters="{}")],
        template_arguments='{"enable_thinking": false}',
    )
)


class Model:
    """Keeps what it is to encode, and encodes nothing."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.tool_use = ToolUse()
        self.manifest = SimpleNamespace(model_id="m", weights_id="w")
        self.engine = SimpleNamespace(limits=RequestLimits(context=64, vocabulary=8, top_k=2))
        self.front = SimpleNamespace(admission=Admission(9))

    def encode(self, ask: Ask, *, plain: bool = False) -> Encoded:
        self.asked.append(ask)
        raise InvalidInput("seen enough")


async def test_prompt_tools_and_template_arguments_reach_the_model_whatever_is_asked() -> None:
    model = Model()
    limits = cast(Limits, SimpleNamespace(budget=Budget(2, 4), on_unknown="generalist"))
    worker = Worker(cast(ServedModel, model), None, limits, name="m")
    metrics = SimpleNamespace(request=lambda: _Meter())
    servicer = WorkerServicer(worker, Preload, cast(WorkerMetrics, metrics))
    context: Any = None
    with pytest.raises(InvalidInput, match="seen enough"):
        await anext(
            aiter(servicer.Generate(worker_pb2.GenerateRequest(prompt=PROMPT, priority=3, cache_salt="s"), context))
        )
    with pytest.raises(InvalidInput, match="seen enough"):
        await servicer.Probe(worker_pb2.ProbeRequest(prompt=PROMPT), context)
    with pytest.raises(InvalidInput, match="seen enough"):
        await servicer.Tokenize(worker_pb2.TokenizeRequest(prompt=PROMPT), context)
    worker.close()
    said = ((Turn("user", "1+1"),), (Tool("add", "adds", "{}"),), '{"enable_thinking": false}')
    assert [(ask.prompt, ask.tools, ask.template_arguments) for ask in model.asked] == [said] * 3
    assert [(ask.priority, ask.cache_salt) for ask in model.asked] == [(3, "s"), (0, ""), (0, "")]


class _Meter:
    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *raised: object) -> None:
        pass
