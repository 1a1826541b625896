"""Penalties, biases, ends, log probabilities, echo and tokens: the real openai package against a whole mesh."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from premoe_local.mesh import Mesh
from support.mesh import prompts
from support.tiny import SPECIAL_TOKENS, tiny_tokenizer

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch

TOKENIZER = tiny_tokenizer()
LETTER = TOKENIZER.convert_tokens_to_ids("q")
PATTERN = {"pattern": "digits"}


@pytest.fixture
def api(mesh: Mesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(api: openai.OpenAI, mesh: Mesh, *, max_tokens: int = 8, **wishes: Any) -> Any:
    """A greedy chat; ``extra``: what the package has no name for."""
    return api.chat.completions.create(
        model=mesh.model_name,
        messages=[{"role": "user", "content": prompts("digits", 1, seed=3)[0]}],
        max_tokens=max_tokens,
        temperature=0,
        extra_body={**PATTERN, **wishes.pop("extra", {})},
        **wishes,
    )


def complete(api: openai.OpenAI, mesh: Mesh, prompt: Any, *, max_tokens: int = 6, **wishes: Any) -> Any:
    return api.completions.create(
        model=mesh.model_name, prompt=prompt, max_tokens=max_tokens, temperature=0, extra_body=PATTERN, **wishes
    )


def test_a_bias_forces_a_token_and_a_penalty_forbids_it_again(api: openai.OpenAI, mesh: Mesh) -> None:
    assert ask(api, mesh, logit_bias={str(LETTER): 100}).choices[0].message.content == "q" * 8
    plain = ask(api, mesh).choices[0].message.content
    assert plain == ask(api, mesh, presence_penalty=0, extra={"repetition_penalty": 1}).choices[0].message.content
    other = {str(LETTER): 100, str(LETTER + 1): 99}
    penalised = ask(api, mesh, logit_bias=other, presence_penalty=2).choices[0].message.content
    assert set(penalised) == {"q", "r"}
    # After the first of each, both are penalised alike.
    assert penalised[:2] == "qr"
    counted = ask(api, mesh, logit_bias=other, frequency_penalty=1.5).choices[0].message.content
    assert counted.count("r") in range(3, 6)


def test_ends_are_where_the_request_says(api: openai.OpenAI, mesh: Mesh) -> None:
    biased = {str(LETTER): 100}
    stopped = ask(api, mesh, logit_bias=biased, extra={"stop_token_ids": [LETTER]})
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("", "stop")
    assert stopped.usage.completion_tokens == 1
    later = ask(api, mesh, logit_bias=biased, extra={"stop_token_ids": [LETTER], "min_tokens": 4})
    assert later.usage.completion_tokens == 5
    assert "q" not in later.choices[0].message.content
    end = {str(TOKENIZER.eos_token_id): 100}
    assert ask(api, mesh, logit_bias=end).usage.completion_tokens == 1
    ignored = ask(api, mesh, logit_bias=end, extra={"ignore_eos": True})
    assert (ignored.usage.completion_tokens, ignored.choices[0].finish_reason) == (8, "length")
    early = ask(api, mesh, logit_bias=biased, stop=["qq"], extra={"min_tokens": 5})
    # The first that may end it is complete with the sixth token.
    assert early.choices[0].message.content == "qqqq"


@pytest.mark.parametrize("stop", [None, ["qr"]])
def test_chat_log_probabilities_are_those_of_the_text_streamed_or_not(
    api: openai.OpenAI, mesh: Mesh, stop: list[str] | None
) -> None:
    bias = None if stop is None else {str(LETTER): 99, str(LETTER + 1): 99}
    wishes: dict[str, Any] = {"logprobs": True, "top_logprobs": 3, "max_tokens": 20, "stop": stop}
    wishes |= {} if bias is None else {"logit_bias": bias, "frequency_penalty": 0.5}
    whole = ask(api, mesh, **wishes)
    entries = whole.choices[0].logprobs.content
    assert len(entries) == whole.usage.completion_tokens
    text = b"".join(bytes(entry.bytes) for entry in entries if entry.token not in SPECIAL_TOKENS)
    content = whole.choices[0].message.content
    assert text.decode(errors="replace").startswith(content)
    if stop is None:
        assert text.decode(errors="replace") == content
    for entry in entries:
        assert entry.logprob < 0
        values = [each.logprob for each in entry.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        if bias is None:
            assert entry.logprob == values[0]
    chunks = [chunk for chunk in ask(api, mesh, stream=True, **wishes) if chunk.choices]
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [(entry.token, entry.bytes) for entry in streamed] == [(entry.token, entry.bytes) for entry in entries]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in entries], abs=1e-4)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content


def test_log_probabilities_are_the_model_s_own_under_a_bias_and_a_grammar(api: openai.OpenAI, mesh: Mesh) -> None:
    wishes: list[dict[str, Any]] = [
        {},
        {"logit_bias": {str(LETTER): 100}, "presence_penalty": 2},
        {"response_format": {"type": "json_object"}},
    ]
    answers = [ask(api, mesh, max_tokens=2, logprobs=True, top_logprobs=5, **wish) for wish in wishes]
    plain, biased, shaped = [answer.choices[0].logprobs.content[0] for answer in answers]
    likeliest = {each.token: each.logprob for each in plain.top_logprobs}
    for other in (biased, shaped):
        assert other.token != plain.token
        assert other.logprob < plain.logprob
        assert {each.token: each.logprob for each in other.top_logprobs} == pytest.approx(likeliest, abs=1e-4)


@pytest.mark.parametrize("as_text", [True, False])
def test_a_completion_s_echo_has_its_prompt_s_log_probabilities(api: openai.OpenAI, mesh: Mesh, as_text: bool) -> None:
    ids = TOKENIZER("a héron ")["input_ids"]
    asked = "a héron " if as_text else ids
    answer = complete(api, mesh, asked, echo=True, logprobs=2)
    (choice,) = answer.choices
    assert choice.text.startswith("a héron ")
    found = choice.logprobs
    assert len(found.tokens) == len(ids) + answer.usage.completion_tokens == len(found.text_offset)
    assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
    assert all(value < 0 for value in found.token_logprobs[1:])
    assert all(2 <= len(top) <= 3 for top in found.top_logprobs[1:])
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        if not token.startswith("bytes:") and token not in SPECIAL_TOKENS:
            assert choice.text[offset:].startswith(token)
    # The two bytes of one letter lie where it begins.
    assert found.text_offset[: len(ids)] == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    plain = complete(api, mesh, asked, logprobs=2).choices[0]
    assert choice.text == "a héron " + plain.text
    assert found.tokens[len(ids) :] == plain.logprobs.tokens
    alone = complete(api, mesh, asked, echo=True, logprobs=2, max_tokens=0)
    assert alone.choices[0].text == "a héron "
    assert alone.choices[0].finish_reason == "length"
    assert alone.usage.completion_tokens == 0
    assert alone.choices[0].logprobs.tokens == found.tokens[: len(ids)]
    assert alone.choices[0].logprobs.token_logprobs[1:] == pytest.approx(found.token_logprobs[1 : len(ids)], abs=1e-4)
    chunks = list(complete(api, mesh, asked, echo=True, logprobs=2, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [offset for part in parts for offset in part.text_offset] == found.text_offset


def test_several_prompts_are_echoed_each_before_its_answers(api: openai.OpenAI, mesh: Mesh) -> None:
    answer = complete(api, mesh, ["abc", "de"], echo=True, n=2)
    assert [choice.text[:2] for choice in answer.choices] == ["ab", "ab", "de", "de"]
    assert all(choice.logprobs is None for choice in answer.choices)


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"extra": {"stop_token_ids": [99999]}}, "stop_token_ids"),
        ({"extra": {"min_tokens": 100_000}, "max_tokens": 100_001}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_only_the_model_can_tell_is_refused_by_its_field(
    api: openai.OpenAI, mesh: Mesh, wish: dict[str, Any], param: str | None, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, mesh, stream=stream, **wish)
    assert caught.value.param == param


def test_text_to_tokens_and_back(mesh: Mesh) -> None:
    with httpx.Client(base_url=mesh.url, timeout=60) as http:
        text = "héron <|end|>"
        found = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
        assert found["tokens"] == TOKENIZER(text)["input_ids"]
        assert found["token_strs"] == TOKENIZER.convert_ids_to_tokens(found["tokens"])
        assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 256)
        assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": text}
        conversation = [{"role": "user", "content": "hi"}]
        found = http.post("/tokenize", json={"messages": conversation, "model": mesh.model_name}).json()
        rendered = TOKENIZER.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert found["tokens"] == TOKENIZER(rendered, add_special_tokens=False)["input_ids"]
        refused = http.post("/detokenize", json={"tokens": [99999]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens")
        echo = {"model": mesh.model_name, "prompt": [5] * 257, "echo": True, "max_tokens": 1}
        for path, body in (
            ("/tokenize", {"prompt": "x" * 100_000}),
            ("/detokenize", {"tokens": [5] * 257}),
            ("/v1/completions", echo),
        ):
            refused = http.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded"), path
        assert http.post("/detokenize", json={"tokens": [5] * 256}).status_code == 200
