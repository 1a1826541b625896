"""An answer that calls tools: its events, and its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from premoe_worker.answer import Answer
from premoe_worker.domain import Called, Delta, Event, Finished, PatternChoice
from premoe_worker.model import ServedModel
from premoe_worker.tools.formats import ToolForm
from premoe_worker.tools.reader import ToolReader

from premoe_runtime.engines.base import TokenEvent
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import KeptPattern, Request

FORM = ToolForm("<tool_call>", "\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "</tool_call>")
ASKED = Request("r1", KeptPattern("p", np.ones((1, 1), dtype=np.bool_)), 1, (1, 2, 3))
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


class ScriptedFront:
    """Answers with these events; what comes after a cancellation is its end."""

    def __init__(self, events: Sequence[TokenEvent]) -> None:
        self._events = events
        self.cancelled = False

    def generate(
        self,
        request: object,
        on_started: Callable[[SwapReport], None],
        on_event: Callable[[TokenEvent], None],
        place: object = None,
    ) -> ScriptedFront:
        on_started(SwapReport())
        self._on_event = on_event
        for event in self._events:
            on_event(event)
        return self

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._on_event(TokenEvent(finish="cancelled", retained_mass=0.5))


async def run(texts: Sequence[str], last: TokenEvent | None, *, single: bool = False) -> list[Event]:
    """The events after the first; of an answer without a last event by itself."""
    events = [TokenEvent((number,), text) for number, text in enumerate(texts)]
    model = cast(ServedModel, ScriptedModel(ScriptedFront([*events, *([last] if last else [])])))
    answer = Answer(PatternChoice("full"), 3, 0, ToolReader(FORM, {}), single=single)
    found = [event async for event in answer.run(model, ASKED)]
    return found[1:]


class ScriptedModel:
    tokens = None  # nobody asks for log probabilities
    manifest = SimpleNamespace(numbers=None)

    def __init__(self, front: ScriptedFront) -> None:
        self.front = front


def told(events: list[Event]) -> tuple[str, list[Any], Finished]:
    """Text, calls and the end; every token is told of once."""
    last = events[-1]
    assert isinstance(last, Finished)
    tokens = [token for event in events if isinstance(event, Delta) for token in event.token_ids]
    assert tokens == list(range(len(tokens)))
    assert last.completion_tokens == len(tokens)
    calls = [(event.call.name, json.loads(event.call.arguments)) for event in events if isinstance(event, Called)]
    return "".join(event.text for event in events if isinstance(event, Delta)), calls, last


async def test_text_and_calls_come_apart() -> None:
    text, calls, last = told(await run(["Let", " me.\n<tool", CALL[5:]], TokenEvent((3,), "", finish="stop")))
    assert (text, calls, last.reason) == ("Let me.", [("add", {"a": 1})], "tool_calls")


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
async def test_without_a_call_the_end_is_the_engine_s(reason: Any) -> None:
    text, calls, last = told(await run(["a <tool"], TokenEvent((1,), "_", finish=reason)))
    assert (text, calls, last.reason) == ("a <tool_", [], reason)


async def test_an_answer_cut_after_a_call_says_so() -> None:
    text, calls, last = told(await run([CALL, "<tool_call>{"], TokenEvent((2,), "", finish="length")))
    assert (text, len(calls), last.reason) == ("<tool_call>{", 1, "length")


async def test_a_single_call_ends_the_answer() -> None:
    text, calls, last = told(await run([CALL], None, single=True))
    assert (text, len(calls), last.reason) == ("", 1, "tool_calls")
    text, calls, last = told(await run([f"{CALL}{CALL} more"], None, single=True))
    assert (text, len(calls), last.reason) == ("", 1, "tool_calls")
