"""`chat_template_kwargs`: what is taken, and what is refused with which words."""

from __future__ import annotations

import json

import pytest
from premoe_gateway.adapters.messages import generate_request
from premoe_gateway.domain import PatternChoice, Recommended
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.requests import parse_chat
from premoe_servicekit.template_arguments import MAX_ARGUMENTS, MAX_CHARACTERS


def parsed(arguments: object, **fields: str) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": arguments, **fields}
    ask = parse_chat(json.dumps(body).replace("Infinity", "1e999").encode()).ask
    request = generate_request(ask, PatternChoice("full"), Recommended())
    assert request.prompt.chat.template_arguments == ask.template_arguments
    return ask.template_arguments


def test_flat_values_are_taken_and_null_is_nothing() -> None:
    given = {"enable_thinking": False, "reasoning_effort": "high", "budget": 2, "share": 0.5}
    assert json.loads(parsed({**given, "other": None})) == given
    assert parsed(None) == parsed({}) == parsed({"a": None}) == ""
    assert json.loads(parsed({"a": "\ud83d"})) == {"a": "\ufffd"}


def test_an_effort_is_an_argument_of_the_template() -> None:
    assert json.loads(parsed(None, reasoning_effort="high")) == {"reasoning_effort": "high"}
    assert json.loads(parsed({"a": 1}, reasoning_effort="low")) == {"reasoning_effort": "low", "a": 1}
    assert json.loads(parsed({"reasoning_effort": "high"}, reasoning_effort="low")) == {"reasoning_effort": "high"}
    assert parsed(None, reasoning_effort="none") == ""
    with pytest.raises(BadParameter, match=r"^reasoning_effort: must be 'none', 'minimal'"):
        parsed(None, reasoning_effort="some")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "must be an object of at most"),
        ("high", "must be an object of at most"),
        ({str(number): 1 for number in range(MAX_ARGUMENTS + 1)}, "must be an object of at most"),
        ({"a": {}}, "a must be true, false, a number up to 2.53 or a text"),
        ({"a": [1]}, "a must be true, false, a number up to 2.53 or a text"),
        ({"a": 10**400}, "a must be true, false, a number up to 2.53 or a text"),
        ({"a": float("inf")}, "a must be true, false, a number up to 2.53 or a text"),
        ({"a": "x" * (MAX_CHARACTERS + 1)}, "a must be true, false, a number up to 2.53 or a text"),
        ({"x" * (MAX_CHARACTERS + 1): 1}, "names have at most"),
    ],
)
def test_what_is_no_argument_is_refused(given: object, says: str) -> None:
    with pytest.raises(BadParameter, match=f"^chat_template_kwargs: {says}") as caught:
        parsed(given)
    assert caught.value.param == "chat_template_kwargs"
