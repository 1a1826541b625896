"""The real langchain-openai package, as its users set it up, against a whole mesh of processes."""

from __future__ import annotations

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from premoe_local.mesh import Mesh
from pydantic import SecretStr
from support.mesh import ALPHABETS, prompts

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch


def chat(mesh: Mesh, **changes: object) -> ChatOpenAI:
    settings = {"model": mesh.model_name, "temperature": 0, "max_tokens": 6, "max_retries": 0, **changes}
    return ChatOpenAI(base_url=f"{mesh.url}/v1", api_key=SecretStr("none"), **settings)  # type: ignore[arg-type]


def test_an_answer_and_what_it_took(mesh: Mesh) -> None:
    answer = chat(mesh).invoke(prompts("digits", 1)[0])
    assert isinstance(answer.content, str)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == 24 + 2
    assert 1 <= answer.usage_metadata["output_tokens"] <= 6
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


def test_streamed_batched_and_awaited_answers_are_the_same(mesh: Mesh) -> None:
    model, prompt = chat(mesh), prompts("vowels", 1)[0]
    whole = model.invoke(prompt).content
    pieces = list(model.stream(prompt))
    assert len(pieces) > 1
    joined = sum(pieces[1:], start=pieces[0])
    assert isinstance(joined, AIMessageChunk)
    assert joined.content == whole
    assert [one.content for one in model.batch([prompt, prompt])] == [whole, whole]


async def test_conversations_of_several_roles(mesh: Mesh) -> None:
    turns = [SystemMessage("be brief"), HumanMessage([{"type": "text", "text": prompts("capitals", 1)[0]}])]
    answer = await chat(mesh).ainvoke(turns)
    alone = await chat(mesh).ainvoke(turns[1:])
    assert answer.usage_metadata is not None
    assert alone.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] > alone.usage_metadata["input_tokens"]


@pytest.mark.parametrize("task", ALPHABETS)
def test_a_pattern_goes_through_as_an_extra_field(mesh: Mesh, task: str) -> None:
    """Named patterns answer as they do through the plain client."""
    prompt = prompts("digits", 1)[0]
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        plain = client.chat.completions.create(
            model=mesh.model_name,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=6,
            temperature=0,
            extra_body={"pattern": task},
        )
    assert chat(mesh, extra_body={"pattern": task}).invoke(prompt).content == plain.choices[0].message.content


def test_plain_completions(mesh: Mesh) -> None:
    model = OpenAI(
        base_url=f"{mesh.url}/v1", api_key=SecretStr("none"), model=mesh.model_name, max_tokens=4, max_retries=0
    )
    assert isinstance(model.invoke("0123456789"), str)


def test_refusals_are_those_of_the_openai_package(mesh: Mesh) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'other'"):
        chat(mesh, model="other").invoke("0123")
    with pytest.raises(openai.BadRequestError, match="tokens"):
        chat(mesh).invoke("x" * 300)
