from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from premoe_gateway.domain import Ask, Sampling, Turn
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.requests import Order, parse_chat, parse_completion

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
        top_k=-1,
        pattern="add",
        active_experts=2,
        deny=["kb", "lang", "kb"],
        user="somebody",
        n=None,
        tools=[],
        tool_choice="none",
        logprobs=False,
        response_format={"type": "text"},
    )
    sampling = Sampling(max_tokens=5, temperature=0.0, top_p=0.5, stop=("x",), seed=2**64 - 1, top_k=0)
    ask = Ask("m", (Turn("system", "be brief"), Turn("user", "ab")), sampling, "add", 2, deny=("kb", "lang"))
    assert order == Order(ask, stream=True, include_usage=True)


@pytest.mark.parametrize(
    ("prompt", "expected"), [("hi", "hi"), (["hi"], "hi"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2)), ([], ())]
)
def test_completion_prompts(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).ask.prompt == expected


def messages(*added: Any) -> dict[str, Any]:
    return {"messages": [*added, USER]}


def parts(*given: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(given)}]}


MAX_STOPS = "must be a string or a list of at most 4, none of them empty"
BAD: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "too many prompts": (completion, {"prompt": ["a"] * 129}, "n", "at most 128 choices a request"),
    "too many choices": (completion, {"prompt": ["a"] * 65, "n": 2}, "n", "at most 128 choices a request"),
    "no choice": (chat, {"n": 0}, "n", "must be greater than or equal to 1"),
    "negative token": (completion, {"prompt": [-1]}, "prompt", "token ids"),
    "huge token": (completion, {"prompt": [2**32]}, "prompt", "token ids"),
    "mixed prompt": (completion, {"prompt": ["a", 1]}, "prompt", "must be a string, a list of token ids"),
    "nested prompt": (completion, {"prompt": {"a": 1}}, "prompt", "must be a string, a list of token ids"),
    "no prompt": (completion, {"prompt": None}, "prompt", "prompt: must be given"),
    "echo of a chat": (chat, {"echo": True}, "echo", "echo is not supported"),
    "best_of": (completion, {"best_of": 3}, "best_of", "best_of is not supported"),
    "suffix": (completion, {"suffix": "x"}, "suffix", "suffix is not supported"),
    "image": (chat, parts({"type": "image_url"}), "messages[0].content[0].type", "parts of type 'image_url'"),
    "part without text": (chat, parts({"type": "text"}), "messages[0].content[0].text", "must be a string"),
    "part of no kind": (chat, parts("a"), "messages[0].content[0]", "must be an object with type and text"),
    "number as content": (chat, messages({"role": "user", "content": 5}), "messages[0].content", "must be a string or"),
    "user without content": (chat, messages({"role": "user"}), "messages[0].content", "must be a string or"),
    "message of no kind": (chat, messages("hello"), "messages[0]", "must be an object with role and content"),
    "role": (chat, messages({"role": "bot", "content": "x"}), "messages[0].role", "must be system, developer, user,"),
    "role of no kind": (chat, messages({"role": [], "content": "x"}), "messages[0].role", "must be system, developer,"),
    "calls of a user": (
        chat,
        messages({"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}),
        "messages[0].tool_calls",
        "messages[0].tool_calls: not supported",
    ),
    "messages of no kind": (chat, {"messages": "hello"}, "messages", "messages: must be a valid list"),
    "no messages": (chat, {"messages": []}, "messages", "must hold at least one message"),
    "effort": (completion, {"reasoning_effort": "high"}, "reasoning_effort", "reasoning_effort is not supported"),
    "audio": (chat, {"modalities": ["text", "audio"]}, "modalities", "modalities is not supported"),
    "unknown": (chat, {"fancy": 1}, "fancy", "fancy: not a parameter of this API"),
    "five stops": (chat, {"stop": list("abcde")}, "stop", MAX_STOPS),
    "empty stop": (chat, {"stop": ""}, "stop", MAX_STOPS),
    "empty stop in a list": (chat, {"stop": [""]}, "stop", MAX_STOPS),
    "number as stop": (chat, {"stop": [5]}, "stop", MAX_STOPS),
    "options": (chat, {"stream_options": 5}, "stream_options", "must be an object"),
    "usage": (chat, {"stream_options": {"include_usage": "x"}}, "stream_options.include_usage", "must be a valid bool"),
    "no model": (chat, {"model": None}, "model", "model: must be given"),
    "number as model": (chat, {"model": 7}, "model", "model: must be a string"),
    "top_p": (chat, {"top_p": 0}, "top_p", "must be greater than 0"),
    "too many tokens": (chat, {"max_tokens": 2**32}, "max_tokens", "must be less than or equal to 4294967295"),
    "far too many tokens": (chat, {"max_completion_tokens": 10**30}, "max_completion_tokens", "must be less than"),
    "too many experts": (chat, {"active_experts": 2**63}, "active_experts", "must be less than or equal to"),
    "a number denied": (chat, {"deny": [1]}, "deny", "deny: must be a list of at most 64 names of tasks"),
    "nobody denied": (chat, {"deny": [""]}, "deny", "deny: must be a list"),
    "too many denied": (completion, {"deny": ["a"] * 65}, "deny", "deny: must be a list"),
    "top_k": (chat, {"top_k": -2}, "top_k", "must be greater than or equal to -1"),
    "seed": (chat, {"seed": 2**64}, "seed", "must be less than"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_bodies_name_the_parameter(case: tuple[Any, dict[str, Any], str, str]) -> None:
    parse, fields, param, message = case
    with pytest.raises(BadParameter) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the body is not JSON: Expecting value"),
    "list": (b"[]", "the body must be a JSON object"),
    "cut": (b'{"model": "m', "the body is not JSON: Unterminated string"),
    "no text": (b"\xff", "the body is not JSON"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep where nobody looks": (b'{"model":"m","metadata":' + b"[" * 100_000, "nested too deeply"),
    "long number": (b'{"max_tokens":1' + b"0" * 5000 + b"}", "the body is not JSON: Exceeds the limit"),
    "not a number": (b'{"temperature":NaN}', "NaN is not a number that JSON knows"),
}


@pytest.mark.parametrize("case", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bodies_that_are_no_objects(case: tuple[bytes, str]) -> None:
    with pytest.raises(BadParameter, match=case[1]):
        parse_chat(case[0])


OPTIONAL = (
    *("stream", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "n", "seed", "user", "logprobs"),
    *("top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format", "logit_bias", "echo", "suffix"),
    *("presence_penalty", "frequency_penalty", "reasoning_effort", "modalities", "audio", "prediction", "verbosity"),
    *("web_search_options", "metadata", "store", "service_tier", "pattern", "active_experts", "deny", "best_of"),
)


@pytest.mark.parametrize("parse", [chat, completion])
def test_null_stands_for_what_was_not_given(parse: Callable[..., Order]) -> None:
    assert parse(**dict.fromkeys(OPTIONAL), stream_options={"include_usage": None}) == parse()


def test_several_choices_and_prompts_are_as_many_sequences_with_seeds_of_their_own() -> None:
    order = completion(prompt=["a", "b"], n=2, seed=2**64 - 1)
    assert [ask.prompt for ask in order.asks] == ["a", "b"]
    chosen = [(index, ask.prompt, ask.sampling.seed) for index, ask in order.choices()]
    assert chosen == [(0, "a", 2**64 - 1), (0, "a", 0), (1, "b", 2**64 - 1), (1, "b", 0)]
    assert [ask.prompt for ask in completion(prompt=[[1], [2, 3]]).asks] == [(1,), (2, 3)]
    assert chat(n=1).choices() == [(0, chat().ask)]


def test_values_that_ask_for_nothing_are_taken() -> None:
    asked = chat(
        n=1.0, tools=[], tool_choice="auto", logprobs=False, modalities=["text"], presence_penalty=0.0, logit_bias={}
    )
    assert asked == chat()


OF_VLLM = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "bad_words": [],
    "length_penalty": 1.0,
    "use_beam_search": False,
    "return_token_ids": False,
}
"""Fields of vLLM's that its clients write out, with the values that they have there anyway."""


@pytest.mark.parametrize("parse", [chat, completion])
def test_what_vllm_does_anyway_is_taken_and_anything_else_refused_by_name(parse: Callable[..., Order]) -> None:
    assert parse(**OF_VLLM, request_id="r", session_id="s", stream_interval=4) == parse()
    others = {name: not value for name, value in OF_VLLM.items()}
    for name, value in {**others, "prompt_logprobs": 1, "structured_outputs": {"choice": ["a"]}}.items():
        with pytest.raises(BadParameter, match=f"^{name} is not supported$") as caught:
            parse(**{name: value})
        assert caught.value.param == name


def test_what_only_tags_a_message_is_passed_over() -> None:
    part = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    tagged = {"role": "user", "content": [part], "name": "eve", "id": 7}
    assert chat(messages=[tagged], stream_options={"continuous_usage_stats": True}) == chat()


def test_an_assistant_that_said_nothing() -> None:
    silent: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [], "refusal": None}
    refused = {"role": "assistant", "content": None, "refusal": "No."}
    turns = chat(**messages(USER, silent, USER, refused)).ask.prompt
    assert [turn.content for turn in turns if isinstance(turn, Turn)] == ["hi", "", "hi", "No.", "hi"]


def test_half_of_a_surrogate_pair_becomes_the_replacement_character() -> None:
    half, whole = b"\\ud83d", b"\\ud83d\\ude00"
    body = b'{"model":"m%s","stop":"%s","pattern":"%s","messages":[{"role":"user","content":"a%sb%s"}]}'
    ask = parse_chat(body % (half, half, half, half, whole)).ask
    assert (ask.model, ask.sampling.stop, ask.pattern) == ("m\ufffd", ("\ufffd",), "\ufffd")
    assert ask.prompt == (Turn("user", "a\ufffdb\U0001f600"),)
    assert parse_completion(b'{"model":"m","prompt":["%s"]}' % half).ask.prompt == "\ufffd"
