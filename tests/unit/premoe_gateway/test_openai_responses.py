"""/v1/responses: what is taken, which field a refusal names, and answers as the real openai package reads them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response
from premoe_gateway.domain import (
    AnswerFormat,
    Ask,
    Called,
    Delta,
    Event,
    Finished,
    FinishReason,
    PatternChoice,
    Started,
    Swap,
    Tool,
    ToolCall,
    Tools,
    Turn,
)
from premoe_gateway.http.app import create_app
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.responses import ResponseOrder, parse_response
from premoe_gateway.service import Gateway
from support.gateway_doubles import MODEL, EchoWorker, OneTask

from premoe_runtime.formats.errors import InvalidInput, Unavailable

Json = dict[str, Any]
USER: Json = {"role": "user", "content": [{"type": "input_text", "text": "h"}, {"type": "input_text", "text": "i"}]}
ADD: Json = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}
CALL: Json = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
OUTPUT: Json = {"type": "function_call_output", "call_id": "c1", "output": "2"}


def order(given: object = "hi", **fields: object) -> ResponseOrder:
    return parse_response(json.dumps({"model": "m", "input": given, **fields}).encode())


def test_input() -> None:
    hi = Turn("user", "hi")
    assert order().ask.prompt == order([USER]).ask.prompt == (hi,)
    assert order(instructions="Be brief").ask.prompt == (Turn("system", "Be brief"), hi)
    said = {"type": "message", "role": "assistant", "status": "completed", "id": "msg_1"}
    talk = [USER, {**said, "content": [{"type": "output_text", "text": "so", "annotations": []}]}, CALL]
    more = {**CALL, "call_id": "c2"}
    turns = order([{"role": "developer", "content": "x"}, *talk, more, OUTPUT]).ask.prompt
    calls = (ToolCall("c1", "add", '{"a": 1}'), ToolCall("c2", "add", '{"a": 1}'))
    assert turns == (
        Turn("system", "x"),
        hi,
        Turn("assistant", "so", calls),
        Turn("tool", "2", tool_call_id="c1"),
    )


def test_settings() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"const": 1}, "strict": True}
    asked = order(
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.25,
        seed=3,
        text={"format": schema, "verbosity": "medium"},
        tools=[ADD],
        tool_choice={"type": "function", "name": "add"},
        parallel_tool_calls=False,
        metadata={"a": "\ud83d"},
        pattern="p",
        active_experts=2,
        deny="kb",
        store=False,
        background=False,
        truncation="disabled",
        include=[],
        previous_response_id=None,
        user="somebody",
        stream=True,
        stream_options={"include_obfuscation": False},
    )
    sampling = asked.ask.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (7, 0.5, 0.25, 3)
    assert asked.ask.format == AnswerFormat('{"const": 1}', strict=True)
    tool = Tool("add", "", '{"type": "object"}', True)
    assert asked.ask.tools == Tools((tool,), required=True, name="add", single=True)
    assert (asked.ask.pattern, asked.ask.active_experts, asked.ask.deny, asked.stream) == ("p", 2, ("kb",), True)
    assert asked.repeated["metadata"] == {"a": "\ufffd"}
    assert asked.repeated["text"] == {"format": schema}


REFUSED: dict[str, tuple[Json, str, str]] = {
    "kept": ({"store": True}, "store", "UNSUPPORTED_PARAMETER"),
    "earlier answer": ({"previous_response_id": "resp_1"}, "previous_response_id", "UNSUPPORTED_PARAMETER"),
    "background": ({"background": True}, "background", "UNSUPPORTED_PARAMETER"),
    "conversation": ({"conversation": "conv_1"}, "conversation", "UNSUPPORTED_PARAMETER"),
    "reasoning": ({"reasoning": {"effort": "high"}}, "reasoning", "UNSUPPORTED_PARAMETER"),
    "truncation": ({"truncation": "auto"}, "truncation", "UNSUPPORTED_PARAMETER"),
    "include": ({"include": ["message.output_text.logprobs"]}, "include", "UNSUPPORTED_PARAMETER"),
    "a chat's field": ({"max_tokens": 5}, "max_tokens", "UNKNOWN_PARAMETER"),
    "choices": ({"n": 2}, "n", "UNKNOWN_PARAMETER"),
    "no tokens": ({"max_output_tokens": 0}, "max_output_tokens", "INVALID_PARAMETER"),
    "hosted tool": ({"tools": [{"type": "web_search"}]}, "tools[0].type", "UNSUPPORTED_PARAMETER"),
    "tool's name": ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "INVALID_PARAMETER"),
    "other tool": ({"tools": [ADD], "tool_choice": {"type": "function", "name": "b"}}, "tool_choice.name", ""),
    "text": ({"text": "json"}, "text", "INVALID_PARAMETER"),
    "verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity", "UNSUPPORTED_PARAMETER"),
    "text's field": ({"text": {"colour": 1}}, "text.colour", "UNKNOWN_PARAMETER"),
    "format": ({"text": {"format": {"type": "xml"}}}, "text.format.type", "INVALID_PARAMETER"),
    "format's name": ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "MISSING_PARAMETER"),
    "metadata": ({"metadata": {"a": 1}}, "metadata", "INVALID_PARAMETER"),
    "no input": ({"input": []}, "input", "INVALID_PARAMETER"),
    "number": ({"input": 5}, "input", "INVALID_PARAMETER"),
    "assistant last": ({"input": [USER, {"role": "assistant", "content": "x"}]}, "input", "INVALID_PARAMETER"),
    "image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
        "UNSUPPORTED_PARAMETER",
    ),
    "reference": ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "UNSUPPORTED_PARAMETER"),
    "tool's role": ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "INVALID_PARAMETER"),
    "no call id": ({"input": [{**OUTPUT, "call_id": None}]}, "input[0].call_id", "MISSING_PARAMETER"),
    "no output": ({"input": [{**OUTPUT, "output": None}]}, "input[0].output", "INVALID_PARAMETER"),
    "arguments": ({"input": [{**CALL, "arguments": "{"}, OUTPUT]}, "input[0].arguments", "INVALID_PARAMETER"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_refusals_name_the_field(case: tuple[Json, str, str]) -> None:
    fields, param, reason = case
    with pytest.raises(BadParameter) as caught:
        order(**{"given": "hi", **{("given" if name == "input" else name): value for name, value in fields.items()}})
    assert caught.value.param == param
    assert caught.value.reason == (reason or "INVALID_PARAMETER")


class Scripted(EchoWorker):
    """Says what it is told to, or fails with it."""

    def __init__(self, *script: Event | Exception) -> None:
        self.script = script

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        yield Started(choice, 5, Swap(0, 0, 0.0))
        for event in self.script:
            if isinstance(event, Exception):
                raise event
            yield event


def finished(reason: FinishReason) -> Finished:
    return Finished(reason, 5, 3, 0.5, 1.0, 2.0)


async def client_of(*script: Event | Exception) -> AsyncIterator[openai.AsyncOpenAI]:
    service = Gateway([Scripted(*script)], OneTask(), on_unknown=None, timeout_s=30)
    transport = httpx2.ASGITransport(create_app(service))
    async with httpx2.AsyncClient(transport=transport) as http:
        yield openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", max_retries=0, http_client=http)


TALK: tuple[Event, ...] = (
    Delta("so "),
    Delta(""),
    Delta("be it"),
    Called(ToolCall("c1", "add", '{"a": 1}')),
    Called(ToolCall("c2", "now", "{}")),
    finished("tool_calls"),
)
MESSAGE = ["response.output_item.added", "response.content_part.added"]
SAID = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
CALLED = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


def plain(answer: Response) -> Json:
    """What does not differ between two answers to one question."""
    document = answer.model_dump(exclude={"id", "created_at", "premoe"})
    for item in document["output"]:
        del item["id"]
    return document


async def test_text_and_calls_whole_and_streamed() -> None:
    asked: Any = {"model": MODEL, "input": "hi", "tools": [ADD], "metadata": {"a": "b"}, "instructions": "Be brief"}
    async for api in client_of(*TALK):
        whole = await api.responses.create(**asked)
        assert (whole.status, whole.output_text, whole.metadata) == ("completed", "so be it", {"a": "b"})
        assert [item.type for item in whole.output] == ["message", "function_call", "function_call"]
        assert whole.usage is not None
        assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.total_tokens) == (5, 3, 8)
        assert whole.model_extra is not None
        assert whole.model_extra["premoe"]["task"] == "task"
        events = [event async for event in await api.responses.create(**asked, stream=True)]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        deltas = ["response.output_text.delta"] * 2
        assert [event.type for event in events] == [
            *("response.created", "response.in_progress"),
            *(*MESSAGE, *deltas, *SAID, *CALLED, *CALLED),
            "response.completed",
        ]
        assert events[0].type == "response.created"
        assert (events[0].response.status, events[0].response.output) == ("in_progress", [])
        assert events[-1].type == "response.completed"
        assert plain(events[-1].response) == plain(whole)
        items = [event.item for event in events if event.type == "response.output_item.done"]
        assert items == events[-1].response.output
        assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["so ", "be it"]


async def test_an_answer_that_is_cut_is_incomplete() -> None:
    async for api in client_of(Delta("so"), finished("length")):
        whole = await api.responses.create(model=MODEL, input="hi", max_output_tokens=3)
        assert whole.incomplete_details is not None
        assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (whole.output[0].type, whole.output_text) == ("message", "so")
        events = [event async for event in await api.responses.create(model=MODEL, input="hi", stream=True)]
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.output_text == "so"


async def test_an_empty_answer_is_a_message() -> None:
    async for api in client_of(finished("stop")):
        whole = await api.responses.create(model=MODEL, input="hi")
        assert [item.type for item in whole.output] == ["message"]
        assert whole.output_text == ""


async def test_a_fault_in_a_stream_is_its_last_event() -> None:
    async for api in client_of(Delta("so"), Unavailable("gone", reason="WORKER_GONE")):
        events = [event async for event in await api.responses.create(model=MODEL, input="hi", stream=True)]
        assert events[-1].type == "response.failed"
        assert events[-1].response.status == "failed"
        assert events[-1].response.output_text == "so"
        assert events[-1].response.error is not None
        assert (events[-1].response.error.code, events[-1].response.error.message) == ("server_error", "gone")
        with pytest.raises(openai.InternalServerError, match="gone"):
            await api.responses.create(model=MODEL, input="hi")


async def test_an_answer_without_its_end_fails() -> None:
    async for api in client_of(Delta("so")):
        events = [event async for event in await api.responses.create(model=MODEL, input="hi", stream=True)]
        assert events[-1].type == "response.failed"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_worker_refuses_has_this_body_s_names(stream: bool) -> None:
    async for api in client_of(InvalidInput("too many", reason="MAX_TOKENS_INVALID")):
        with pytest.raises(openai.BadRequestError, match="too many") as caught:
            await api.responses.create(model=MODEL, input="hi", stream=stream)
        assert (caught.value.param, caught.value.code) == ("max_output_tokens", "max_tokens_invalid")
