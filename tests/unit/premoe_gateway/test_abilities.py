"""What requests need workers to know: every field of the wire is told of, or was there from the first."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from google.protobuf.descriptor import Descriptor
from premoe.worker.v1 import worker_pb2
from premoe_gateway.domain import AnswerFormat, Ask, Sampling, Tool, ToolCall, Tools, Turn
from premoe_gateway.routing.abilities import needs
from premoe_servicekit.abilities import ABILITIES, Ability

FIRST = {
    # Older workers have no engine that uses keys and values again.
    "GenerateRequest": {"prompt", "sampling", "pattern", "active_experts", "on_unknown", "model", "cache_salt"},
    "Sampling": {"max_tokens", "temperature", "top_p", "stop", "seed", "top_k"},
    "Chat": {"messages"},
    "Message": {"role", "content"},
}
"""Fields that every worker knows."""
ASKED: dict[Ability, tuple[dict[str, object], dict[str, set[str]]]] = {
    "chat_template_kwargs": ({"template_arguments": ['{"a": 1}']}, {"Chat": {"template_arguments"}}),
    "deny": ({"deny": [("a",)]}, {"GenerateRequest": {"deny"}}),
    "end_tokens": (
        {"sampling": [Sampling(min_tokens=1), Sampling(ignore_eos=True), Sampling(stop_token_ids=(1,))]},
        {"Sampling": {"min_tokens", "ignore_eos", "stop_token_ids"}},
    ),
    "logprobs": (
        {"sampling": [Sampling(logprobs=0), Sampling(prompt_logprobs=0)]},
        {"Sampling": {"logprobs", "prompt_logprobs"}},
    ),
    "min_p": ({"sampling": [Sampling(min_p=0.1)]}, {"Sampling": {"min_p"}}),
    "penalties": (
        {
            "sampling": [
                Sampling(presence_penalty=1.0),
                Sampling(frequency_penalty=-1.0),
                Sampling(repetition_penalty=1.1),
                Sampling(logit_bias=((1, 2.0),)),
            ]
        },
        {"Sampling": {"presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"}},
    ),
    "priority": ({"priority": [1]}, {"GenerateRequest": {"priority"}}),
    "response_format": ({"format": [AnswerFormat("{}", strict=True)]}, {"GenerateRequest": {"format"}}),
    "tools": (
        {
            "tools": [Tools((Tool("t", "", "", strict=False),))],
            "prompt": [
                (Turn("assistant", "", (ToolCall("1", "t", "{}"),)), Turn("user", "go on")),
                (Turn("tool", "4", tool_call_id="1"),),
            ],
        },
        {"GenerateRequest": {"tool_choice"}, "Chat": {"tools"}, "Message": {"tool_calls", "tool_call_id"}},
    ),
}


@pytest.mark.parametrize("ability", ABILITIES)
def test_each_is_needed_by_what_it_names_and_by_nothing_else(ability: Ability) -> None:
    asked, _ = ASKED[ability]
    for field, values in asked.items():
        assert isinstance(values, Iterable)
        for value in values:
            ask = Ask(**{"model": "m", "prompt": "hi", "sampling": Sampling(), field: value})
            assert needs(ask) == {ability}


def test_a_plain_request_needs_nothing() -> None:
    plain = Sampling(9, 0.5, 0.9, ("x",), 7, 3, min_p=0.0, repetition_penalty=1.0)
    turns = (Turn("system", "be brief"), Turn("user", "hi"), Turn("assistant", "ho"), Turn("user", "hi"))
    assert needs(Ask("m", turns, plain, pattern="full", active_experts=2)) == frozenset()
    assert needs(Ask("m", (1, 2), Sampling())) == frozenset()


@pytest.mark.parametrize(
    "message", [worker_pb2.GenerateRequest, worker_pb2.Sampling, worker_pb2.Chat, worker_pb2.Message]
)
def test_a_field_that_is_new_belongs_to_an_ability(message: type) -> None:
    descriptor: Descriptor = message.DESCRIPTOR  # type: ignore[attr-defined]
    told = FIRST[descriptor.name].union(*(fields.get(descriptor.name, set()) for _, fields in ASKED.values()))
    assert {field.name for field in descriptor.fields} == told
