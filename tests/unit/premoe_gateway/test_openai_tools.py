"""`tools`, `tool_choice` and calls in a conversation: what is taken, which field a refusal names, what answers say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from premoe_gateway.adapters import messages as wire
from premoe_gateway.domain import (
    Ask,
    Finished,
    PatternChoice,
    Recognition,
    Recommended,
    Started,
    Swap,
    Tool,
    ToolCall,
    Tools,
    Turn,
)
from premoe_gateway.openai import answers
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.requests import parse_chat

Json = dict[str, Any]
USER: Json = {"role": "user", "content": "hi"}
ADD: Json = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
NOW: Json = {"type": "function", "function": {"name": "now", "strict": True}}
CALL: Json = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOLS = (Tool("add", "adds", '{"type": "object"}', False), Tool("now", "", "", True))


def chat(*talk: Json, **fields: Any) -> Ask:
    return parse_chat(json.dumps({"model": "m", "messages": [*(talk or (USER,))], **fields}).encode()).ask


def test_tools_and_choices() -> None:
    both = [ADD, NOW]
    assert chat(tools=both).tools == Tools(TOOLS)
    assert chat(tools=both, tool_choice="auto", parallel_tool_calls=False).tools == Tools(TOOLS, single=True)
    assert chat(tools=both, tool_choice="required").tools == Tools(TOOLS, required=True)
    named = {"type": "function", "function": {"name": "now"}}
    assert chat(tools=both, tool_choice=named).tools == Tools(TOOLS, required=True, name="now")
    assert chat(tools=both, tool_choice="none").tools == chat(tools=[]).tools == Tools()
    assert chat(tool_choice="auto", parallel_tool_calls=True).tools == Tools()


def test_conversations_with_calls() -> None:
    caller = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    answer = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "2"}], "name": "add"}
    asked = chat(USER, caller, answer, tools=[ADD])
    calls = (ToolCall("c1", "add", '{"a": 1}'),)
    assert asked.prompt == (Turn("user", "hi"), Turn("assistant", "", calls), Turn("tool", "2", tool_call_id="c1"))
    sent = wire.generate_request(asked, PatternChoice("full"), Recommended())
    assert [tool.name for tool in sent.prompt.chat.tools] == ["add"]
    assert sent.prompt.chat.messages[1].tool_calls[0].arguments == '{"a": 1}'
    assert sent.prompt.chat.messages[2].tool_call_id == "c1"
    empty = {**CALL, "function": {"name": "add", "arguments": ""}}
    turn = chat(USER, {**caller, "tool_calls": [empty]}, answer).prompt[1]
    assert isinstance(turn, Turn)
    assert turn.tool_calls == (ToolCall("c1", "add", "{}"),)


def function(**fields: object) -> Json:
    return {"tools": [{"type": "function", "function": {"name": "f", **fields}}]}


def calling(**fields: object) -> Json:
    return {"messages": [USER, {"role": "assistant", "tool_calls": [{**CALL, **fields}]}, USER]}


BAD: dict[str, tuple[Json, str]] = {
    "tools of no kind": ({"tools": "add"}, "tools"),
    "too many": ({"tools": [ADD] * 129}, "tools"),
    "twice": ({"tools": [ADD, ADD]}, "tools[1].function.name"),
    "tool of no kind": ({"tools": ["add"]}, "tools[0]"),
    "type": ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
    "no function": ({"tools": [{"type": "function"}]}, "tools[0].function"),
    "name": (function(name="a b"), "tools[0].function.name"),
    "no name": (function(name=None), "tools[0].function.name"),
    "description": (function(description=5), "tools[0].function.description"),
    "parameters": (function(parameters="{}"), "tools[0].function.parameters"),
    "strict": (function(strict="yes"), "tools[0].function.strict"),
    "choice": ({**function(), "tool_choice": "any"}, "tool_choice"),
    "choice of no kind": ({**function(), "tool_choice": 5}, "tool_choice"),
    "choice of another type": ({**function(), "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
    "choice of none": ({"tool_choice": "required"}, "tool_choice"),
    "choice of another": (
        {**function(), "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice.function.name",
    ),
    "parallel": ({**function(), "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    "calls of no kind": ({"messages": [{"role": "assistant", "tool_calls": {"a": 1}}, USER]}, "messages[0].tool_calls"),
    "call without id": (calling(id=None), "messages[1].tool_calls[0].id"),
    "call without function": (calling(function=None), "messages[1].tool_calls[0].function"),
    "arguments": (
        calling(function={"name": "f", "arguments": "{"}),
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments of no kind": (
        calling(function={"name": "f", "arguments": {}}),
        "messages[1].tool_calls[0].function.arguments",
    ),
    "answer to nothing": ({"messages": [USER, {"role": "tool", "content": "2"}]}, "messages[1].tool_call_id"),
    "answer of nothing": ({"messages": [USER, {"role": "tool", "tool_call_id": "c"}]}, "messages[1].content"),
    "function": ({"messages": [USER, {"role": "function", "content": "2"}]}, "messages[1].role"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_tools_name_the_field(case: tuple[Json, str]) -> None:
    fields, param = case
    with pytest.raises(BadParameter) as caught:
        parse_chat(json.dumps({"model": "m", "messages": [USER], **fields}).encode())
    assert caught.value.param == param


def test_answers_with_calls() -> None:
    head = answers.Head("chatcmpl-1", 1, "m", "chat")
    choice = answers.Choice(
        0,
        "",
        Started(PatternChoice("full"), 3, Swap(0, 0, 0.0)),
        Finished("tool_calls", 3, 5, 1.0, 0.0, 0.0),
        Recognition(PatternChoice("full")),
        calls=(ToolCall("c1", "add", "{}"), ToolCall("c2", "now", "{}")),
    )
    (entry,) = json.loads(json.dumps(answers.whole(head, [choice])))["choices"]
    assert (entry["finish_reason"], entry["message"]["content"]) == ("tool_calls", None)
    assert [call["function"]["name"] for call in entry["message"]["tool_calls"]] == ["add", "now"]
    (delta,) = json.loads(json.dumps(answers.called(head, 0, 1, choice.calls[1])))["choices"]
    assert delta["delta"] == {
        "tool_calls": [{"index": 1, "id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}}]
    }
