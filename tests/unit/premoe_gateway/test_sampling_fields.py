"""Fields that say how tokens are chosen: what reaches the worker, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from premoe_gateway.adapters.messages import generate_request
from premoe_gateway.domain import PatternChoice, Recommended
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.requests import Order, parse_chat, parse_completion
from premoe_gateway.openai.tokens import parse_tokenize


def chat(**fields: Any) -> Order:
    messages = [{"role": "user", "content": "hi"}]
    return parse_chat(json.dumps({"model": "m", "messages": messages, **fields}).encode())


def completion(**fields: Any) -> Order:
    return parse_completion(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def tokenize(**fields: Any) -> Any:
    return parse_tokenize(json.dumps(fields).encode())


EVERYTHING: dict[str, Any] = {
    "presence_penalty": 0.5,
    "frequency_penalty": -2,
    "repetition_penalty": 1.25,
    "min_p": 0.125,
    "logit_bias": {"7": -100, "12": 1.5},
    "min_tokens": 3,
    "ignore_eos": True,
    "stop_token_ids": [5, 6],
    "max_tokens": 9,
}


@pytest.mark.parametrize("parse", [chat, completion])
def test_every_field_reaches_the_worker(parse: Any) -> None:
    sent = generate_request(parse(**EVERYTHING).ask, PatternChoice("full"), Recommended()).sampling
    assert {name: getattr(sent, name) for name in EVERYTHING if name not in ("logit_bias", "stop_token_ids")} == {
        name: value for name, value in EVERYTHING.items() if name not in ("logit_bias", "stop_token_ids")
    }
    assert dict(sent.logit_bias) == {7: -100, 12: 1.5}
    assert list(sent.stop_token_ids) == [5, 6]
    assert not sent.HasField("logprobs")


def test_what_the_authors_recommend_holds_where_nothing_is_named() -> None:
    recommended = Recommended(temperature=0.5, min_p=0.25, repetition_penalty=1.5)
    sent = generate_request(chat().ask, PatternChoice("full"), recommended).sampling
    assert (sent.min_p, sent.repetition_penalty) == (0.25, 1.5)
    named = chat(min_p=0, repetition_penalty=1).ask
    sent = generate_request(named, PatternChoice("full"), recommended).sampling
    assert (sent.min_p, sent.repetition_penalty) == (0, 1)


@pytest.mark.parametrize(
    ("order", "logprobs", "prompt_logprobs", "echo"),
    [
        (chat(logprobs=True), 0, None, ""),
        (chat(logprobs=True, top_logprobs=20), 20, None, ""),
        (chat(logprobs=False, top_logprobs=0), None, None, ""),
        (completion(logprobs=0), 0, None, ""),
        (completion(logprobs=False), None, None, ""),
        (completion(logprobs=5, echo=True), 5, 5, "prompt"),
        (completion(echo=True), None, None, "prompt"),
        (completion(echo=True, max_tokens=0, logprobs=1), 1, 1, "only"),
    ],
)
def test_how_log_probabilities_are_asked_for(
    order: Order, logprobs: int | None, prompt_logprobs: int | None, echo: str
) -> None:
    sampling = order.ask.sampling
    assert (sampling.logprobs, sampling.prompt_logprobs, order.echo) == (logprobs, prompt_logprobs, echo)
    assert sampling.max_tokens == (1 if echo == "only" else sampling.max_tokens)


TOO_MANY = {str(token): 1 for token in range(301)}
BAD: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "presence": (chat, {"presence_penalty": 2.1}, "presence_penalty", "must be less than or equal to 2"),
    "presence as text": (chat, {"presence_penalty": "1"}, "presence_penalty", "must be a number"),
    "frequency": (chat, {"frequency_penalty": -3}, "frequency_penalty", "must be greater than or equal to -2"),
    "repetition": (chat, {"repetition_penalty": 0}, "repetition_penalty", "must be greater than or equal to 0.001"),
    "min_p": (chat, {"min_p": 1.5}, "min_p", "must be less than or equal to 1"),
    "bias of a word": (chat, {"logit_bias": {"word": 1}}, "logit_bias", "must name token ids"),
    "bias below zero": (chat, {"logit_bias": {"-1": 1}}, "logit_bias", "must name token ids"),
    "bias of a huge id": (chat, {"logit_bias": {"4294967296": 1}}, "logit_bias", "must name token ids"),
    "bias in other digits": (chat, {"logit_bias": {"\u0663": 1}}, "logit_bias", "must name token ids"),
    "great bias": (chat, {"logit_bias": {"1": 101}}, "logit_bias", "number in -100"),
    "true as bias": (chat, {"logit_bias": {"1": True}}, "logit_bias", "number in -100"),
    "huge bias": (chat, {"logit_bias": {"1": 10**400}}, "logit_bias", "number in -100"),
    "too many biases": (chat, {"logit_bias": TOO_MANY}, "logit_bias", "at most 300"),
    "biases in a list": (chat, {"logit_bias": [1]}, "logit_bias", "must be an object"),
    "min_tokens": (chat, {"min_tokens": -1}, "min_tokens", "must be greater than or equal to 0"),
    "min_tokens over": (chat, {"min_tokens": 6, "max_tokens": 5}, "min_tokens", "must not exceed max_tokens, 5"),
    "min_tokens over the default": (completion, {"min_tokens": 17}, "min_tokens", "must not exceed max_tokens, 16"),
    "ignore_eos": (chat, {"ignore_eos": 1}, "ignore_eos", "must be a valid bool"),
    "end ids": (chat, {"stop_token_ids": ["1"]}, "stop_token_ids", "must be a list of at most 128 token ids"),
    "one end id": (chat, {"stop_token_ids": 1}, "stop_token_ids", "must be a list of at most 128 token ids"),
    "too many end ids": (chat, {"stop_token_ids": [1] * 129}, "stop_token_ids", "at most 128"),
    "end id below zero": (chat, {"stop_token_ids": [-1]}, "stop_token_ids", "token ids"),
    "top_logprobs": (chat, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    "top_logprobs alone": (chat, {"top_logprobs": 2}, "top_logprobs", "needs logprobs to be true"),
    "number of a chat": (chat, {"logprobs": 5}, "logprobs", "must be a valid boolean"),
    "logprobs": (completion, {"logprobs": 21}, "logprobs", "less than or equal to 20"),
    "true": (completion, {"logprobs": True}, "logprobs", "must be a number"),
    "top_logprobs of a completion": (completion, {"top_logprobs": 2}, "top_logprobs", "top_logprobs is not supported"),
    "echo": (completion, {"echo": "yes"}, "echo", "must be a valid boolean"),
    "no token": (completion, {"max_tokens": 0}, "max_tokens", "must be at least 1, or 0 with echo"),
    "no token of a chat": (chat, {"max_tokens": 0}, "max_tokens", "must be greater than or equal to 1"),
    "nothing to tokenize": (tokenize, {"model": "m"}, "prompt", "give either prompt or messages"),
    "both": (tokenize, {"prompt": "a", "messages": []}, "prompt", "give either prompt or messages"),
    "no message": (tokenize, {"messages": []}, "messages", "must hold at least one message"),
    "special": (
        tokenize,
        {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
        "add_special_tokens",
        "not supported with messages",
    ),
    "unknown": (tokenize, {"prompt": "a", "fancy": True}, "fancy", "not a parameter"),
    "unsupported": (
        tokenize,
        {"prompt": "a", "continue_final_message": True},
        "continue_final_message",
        "not supported",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_values_name_the_field(case: tuple[Any, dict[str, Any], str, str]) -> None:
    parse, fields, param, message = case
    with pytest.raises(BadParameter) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
