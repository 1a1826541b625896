"""`response_format` through a whole mesh, with the real openai package."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from premoe_local.mesh import Mesh
from pydantic import BaseModel, ConfigDict, Field

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch

HI: Any = [{"role": "user", "content": "0123456789"}]


class Point(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=3)
    kind: Literal["small", "large"]
    at: list[bool] = Field(max_length=2)


POINT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "point", "schema": Point.model_json_schema(), "strict": True},
}


@pytest.fixture
def api(mesh: Mesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_every_choice_is_what_the_schema_says(api: openai.OpenAI, mesh: Mesh) -> None:
    answer = api.chat.completions.create(
        model=mesh.model_name, messages=HI, response_format=POINT, n=4, seed=1, temperature=1.5
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 4
    assert len({Point.model_validate_json(choice.message.content or "").name for choice in answer.choices}) > 1


def test_the_package_parses_what_it_asked_for(api: openai.OpenAI, mesh: Mesh) -> None:
    answer = api.chat.completions.parse(
        model=mesh.model_name, messages=HI, response_format=Point, temperature=1, seed=2
    )
    assert isinstance(answer.choices[0].message.parsed, Point)


def test_streams_and_completions(api: openai.OpenAI, mesh: Mesh) -> None:
    stream = api.chat.completions.create(
        model=mesh.model_name, messages=HI, response_format=POINT, stream=True, seed=3, temperature=1.5
    )
    Point.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in stream))
    text = api.completions.create(
        model=mesh.model_name, prompt="abc", max_tokens=200, seed=4, extra_body={"response_format": POINT}
    )
    Point.model_validate_json(text.choices[0].text)


def test_json_mode_is_an_object_as_far_as_it_comes(api: openai.OpenAI, mesh: Mesh) -> None:
    answer = api.chat.completions.create(
        model=mesh.model_name, messages=HI, response_format={"type": "json_object"}, seed=5, max_tokens=100
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"type": "strng"}, "Invalid type: strng"),
    "keyword": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "unsatisfiable": ({"type": "integer", "minimum": 5, "maximum": 4}, "Unsatisfiable"),
    "reference": ({"$ref": "https://example.com/schema.json"}, "not present"),
    "pattern": ({"type": "string", "pattern": "(["}, "unclosed"),
    "deep": (json.loads('{"not":' * 300 + "{}" + "}" * 300), "recursion"),
    "long": ({"enum": ["x" * 70_000]}, "longer than 65536 bytes"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("stream", [False, True])
def test_bad_schemas_are_400_with_the_reason(
    api: openai.OpenAI, mesh: Mesh, case: tuple[dict[str, Any], str], stream: bool
) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": case[0], "strict": True}}
    with pytest.raises(openai.BadRequestError, match=case[1]) as caught:
        api.chat.completions.create(model=mesh.model_name, messages=HI, response_format=wanted, stream=stream)
    assert (caught.value.code, caught.value.param) == ("response_format_invalid", "response_format")


def test_without_strict_what_cannot_be_enforced_is_passed_over(api: openai.OpenAI, mesh: Mesh) -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"enum": [7]}, "minItems": 2, "maxItems": 2}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    answer = api.chat.completions.create(model=mesh.model_name, messages=HI, response_format=wanted)
    assert json.loads(answer.choices[0].message.content or "") == [7, 7]


async def test_a_schema_that_takes_for_ever_holds_up_nobody(mesh: Mesh) -> None:
    slow: Any = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "integer", "multipleOf": 99_999_999}},
    }
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        ends: list[str] = []

        async def ask(name: str, **fields: Any) -> None:
            try:
                await client.chat.completions.create(model=mesh.model_name, messages=HI, **fields)
            except openai.BadRequestError as error:
                name = str(error.body)
            ends.append(name)

        await asyncio.gather(ask("slow", response_format=slow), *(ask("free", max_tokens=3) for _ in range(3)))
    assert ends[:3] == ["free"] * 3
    assert "takes too long" in ends[3]
