"""Doubles of the gateway's two ports, for tests of its HTTP face at speed.

They turn what they get into the messages that would go out, so that what the wire cannot carry is found too.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence

import numpy as np
from premoe.worker.v1 import worker_pb2
from premoe_gateway.adapters import messages
from premoe_gateway.domain import (
    Ask,
    Delta,
    Event,
    Finished,
    PatternChoice,
    PlaceLogprobs,
    Probed,
    Recommended,
    Started,
    StoredPattern,
    Swap,
    TokenLogprob,
    Tokens,
    WorkerState,
)
from premoe_servicekit.abilities import ABILITIES

from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.ranking import Ranking

MODEL = "m"


class EchoWorker:
    """Answers with what it was asked."""

    address = "worker"

    async def state(self) -> WorkerState:
        return WorkerState(
            address="worker",
            model=MODEL,
            weights_id="w",
            running=0,
            waiting=0,
            slots=1,
            layer_slots=(1,),
            allocation="shared",
            experts=1,
            context_length=64,
            budget="1/1",
            abilities=frozenset(ABILITIES),
        )

    async def probe(self, ask: Ask, timeout_s: float) -> Probed:
        messages.prompt_message(ask).SerializeToString()
        return Probed("w", (1.0,))

    async def tokenize(self, ask: Ask, timeout_s: float, *, plain: bool) -> Tokens:
        messages.prompt_message(ask).SerializeToString()
        text = ask.prompt if isinstance(ask.prompt, str) else f"chat{ask.template_arguments}"
        return Tokens(tuple(text.encode()), tuple(text), 64)

    async def detokenize(self, model: str, ids: Sequence[int], *, skip_special: bool, timeout_s: float) -> str:
        return bytes(worker_pb2.DetokenizeRequest(ids=ids).ids[index] % 256 for index in range(len(ids))).decode(
            errors="replace"
        )

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        sent = messages.generate_request(ask, choice, Recommended())
        sent.SerializeToString()
        yield Started(choice, 1, Swap(0, 0, 0.0))
        told = PlaceLogprobs(TokenLogprob(b"\xc3", False, -math.inf), (TokenLogprob(b"a", False, -0.5),))
        asked = sent.sampling
        yield Delta("", prompt_logprobs=(told,) if asked.HasField("prompt_logprobs") else ())
        yield Delta(sent.prompt.text, (told,) if asked.HasField("logprobs") else ())
        yield Finished("stop", 1, 1, 1.0, 0.0, 0.0)


class OneTask:
    """Recognises every prompt as the only task."""

    async def retrieve(self, probed: Probed, on_unknown: OnUnknown | None, timeout_s: float) -> PatternChoice:
        return PatternChoice("specialist", "p", "task", 1.0, "the only one")

    async def ranking(self, pattern_id: str, timeout_s: float) -> Ranking:
        return Ranking(pattern_id, "task", "w", "selection", False, np.zeros((1, 1), np.int64), np.ones((1, 1)))

    async def patterns(self, weights_id: str, timeout_s: float) -> tuple[StoredPattern, ...]:
        return (StoredPattern("p", "task", False),)
