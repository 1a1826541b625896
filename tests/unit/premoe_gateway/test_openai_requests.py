from __future__ import annotations

import json
from typing import Any

import pytest
from premoe_gateway.domain import Ask, Sampling, Turn
from premoe_gateway.openai_requests import BadParameter, Order, parse_chat, parse_completion

USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> Order:
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def completion(**fields: Any) -> Order:
    return parse_completion(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def test_chat_defaults() -> None:
    assert chat() == Order(Ask("m", (Turn("user", "hi"),), Sampling()), stream=False, include_usage=False)


def test_chat_with_everything() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    order = chat(
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}],
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=5,
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        stop="x",
        seed=-1,
        pattern="add",
        active_experts=2,
        user="somebody",
        n=None,
        tools=[],
        tool_choice="none",
        logprobs=False,
        response_format={"type": "text"},
    )
    sampling = Sampling(max_tokens=5, temperature=0.0, top_p=0.5, stop=("x",), seed=2**64 - 1)
    ask = Ask("m", (Turn("system", "be brief"), Turn("user", "ab")), sampling, "add", 2)
    assert order == Order(ask, stream=True, include_usage=True)


@pytest.mark.parametrize(
    ("prompt", "expected"), [("hi", "hi"), (["hi"], "hi"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2)), ([], ())]
)
def test_completion_prompts(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).ask.prompt == expected


BAD: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "two prompts": (completion, {"prompt": ["a", "b"]}, "prompt", "only one prompt"),
    "negative token": (completion, {"prompt": [-1]}, "prompt", "token ids"),
    "echo": (completion, {"echo": True}, "echo", "echo is not supported"),
    "logprobs 0": (completion, {"logprobs": 0}, "logprobs", "logprobs is not supported"),
    "best_of": (completion, {"best_of": 3}, "best_of", "best_of is not supported"),
    "suffix": (completion, {"suffix": "x"}, "suffix", "suffix is not supported"),
    "image": (chat, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "messages[0]"),
    "json mode": (chat, {"response_format": {"type": "json_object"}}, "response_format", "response_format.type"),
    "five stops": (chat, {"stop": list("abcde")}, "stop", "stop"),
    "empty stop": (chat, {"stop": ""}, "stop", "stop"),
    "bias": (chat, {"logit_bias": {"1": 2}}, "logit_bias", "logit_bias is not supported"),
    "no model": (chat, {"model": None}, "model", "model"),
    "top_p": (chat, {"top_p": 0}, "top_p", "greater than 0"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_bodies_name_the_parameter(case: tuple[Any, dict[str, Any], str, str]) -> None:
    parse, fields, param, message = case
    with pytest.raises(BadParameter) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"\xff"])
def test_bodies_that_are_no_objects(body: bytes) -> None:
    with pytest.raises(BadParameter, match="body"):
        parse_chat(body)
