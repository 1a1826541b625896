"""/v1/responses of a whole mesh, with the real openai package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from premoe_local.mesh import Mesh
from support.mesh import prompts

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch


@pytest.fixture
def api(mesh: Mesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_whole_streamed_and_as_a_chat(api: openai.OpenAI, mesh: Mesh) -> None:
    text = prompts("digits", 1, seed=3)[0]
    asked: Any = {"model": mesh.model_name, "temperature": 0}
    chat = api.chat.completions.create(**asked, messages=[{"role": "user", "content": text}], max_tokens=12)
    whole = api.responses.create(**asked, input=text, max_output_tokens=12)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage is not None
    assert chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    assert whole.usage.output_tokens == chat.usage.completion_tokens
    assert whole.model_extra is not None
    assert chat.model_extra is not None
    assert whole.model_extra["premoe"]["pattern"] == chat.model_extra["premoe"]["pattern"]
    with api.responses.stream(**asked, input=[{"role": "user", "content": text}], max_output_tokens=12) as stream:
        parts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(parts) == whole.output_text
    assert whole.status == ("incomplete" if chat.choices[0].finish_reason == "length" else "completed")


def test_instructions_format_and_a_named_pattern(api: openai.OpenAI, mesh: Mesh) -> None:
    answer = api.responses.create(
        model=mesh.model_name,
        input=[{"role": "user", "content": [{"type": "input_text", "text": "0123456789"}]}],
        instructions="0123",
        text={"format": {"type": "json_schema", "name": "size", "schema": {"enum": [1, 22, 333]}, "strict": True}},
        metadata={"for": "a test"},
        extra_body={"pattern": "vowels", "active_experts": 1},
    )
    assert json.loads(answer.output_text) in (1, 22, 333)
    assert (answer.status, answer.metadata, answer.instructions) == ("completed", {"for": "a test"}, "0123")
    assert answer.model_extra is not None
    assert answer.model_extra["premoe"]["task"] == "vowels"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "earlier answer": ({"previous_response_id": "resp_1"}, "previous_response_id"),
    "kept": ({"store": True}, "store"),
    "schema": (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}, "strict": True}}},
        "text.format",
    ),
    "tools": ({"tools": [{"type": "function", "name": "f", "parameters": {}, "strict": False}]}, "tools"),
}


def test_an_answer_longer_than_the_context_is_refused(api: openai.OpenAI, mesh: Mesh) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.responses.create(model=mesh.model_name, input="0123456789", max_output_tokens=100_000)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_refusals_name_the_field(
    api: openai.OpenAI, mesh: Mesh, case: tuple[dict[str, Any], str], stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.responses.create(model=mesh.model_name, input="0123456789", stream=stream, **case[0])
    assert caught.value.param == case[1]
