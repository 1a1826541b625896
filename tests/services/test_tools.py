"""Tools through a whole mesh, with the real openai package and langchain's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from premoe_local.mesh import Mesh
from pydantic import BaseModel, SecretStr
from support.mesh import mesh_over, prepare_store
from support.tool_templates import THINKS

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch

HI: Any = [{"role": "user", "content": "0123456789"}]
SIZE: Any = {"enum": [1, 22, 333]}
PARAMETERS = {"type": "object", "properties": {"size": SIZE}, "required": ["size"], "additionalProperties": False}
ADD: Any = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": PARAMETERS}}
NOW: Any = {"type": "function", "function": {"name": "now", "parameters": {**PARAMETERS}}}


@pytest.fixture(scope="module")
def tool_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A model whose template knows tools."""
    url = prepare_store(tmp_path_factory.mktemp("tools"), template=THINKS)
    with mesh_over(url, context_length=1024) as running:
        yield running


@pytest.fixture
def api(tool_mesh: Mesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tool_mesh.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_required_call_comes_whole_and_streamed(api: openai.OpenAI, tool_mesh: Mesh) -> None:
    asked: Any = {
        "model": tool_mesh.model_name,
        "messages": HI,
        "tools": [ADD, NOW],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "seed": 3,
        "temperature": 1.5,
    }
    (choice,) = api.chat.completions.create(**asked).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name in ("add", "now")
    assert json.loads(call.function.arguments)["size"] in SIZE["enum"]
    streamed: list[Any] = []
    reasons: list[str] = []
    for chunk in api.chat.completions.create(**asked, stream=True):
        for part in chunk.choices:
            streamed += part.delta.tool_calls or []
            reasons += [part.finish_reason] if part.finish_reason else []
            assert not part.delta.content
    assert reasons == ["tool_calls"]
    assert [(part.index, part.function.name, part.function.arguments) for part in streamed] == [
        (0, call.function.name, call.function.arguments)
    ]
    assert streamed[0].id


def test_responses_call_and_go_on(api: openai.OpenAI, tool_mesh: Mesh) -> None:
    add = {"type": "function", **ADD["function"], "strict": True}
    asked: Any = {"model": tool_mesh.model_name, "tools": [add], "seed": 3, "temperature": 1.5}
    forced: Any = {"type": "function", "name": "add"}
    body = {"seed": asked.pop("seed")}
    first = api.responses.create(
        **asked, input="0123456789", tool_choice=forced, parallel_tool_calls=False, extra_body=body
    )
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["size"] in SIZE["enum"]
    talk: Any = [
        {"role": "user", "content": "0123456789"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "5"},
    ]
    again = api.responses.create(**asked, input=talk, max_output_tokens=5, extra_body=body)
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.input_tokens > first.usage.input_tokens
    assert again.status in ("completed", "incomplete")


def test_a_named_tool_is_called_in_every_choice(api: openai.OpenAI, tool_mesh: Mesh) -> None:
    answer = api.chat.completions.create(
        model=tool_mesh.model_name,
        messages=HI,
        tools=[ADD, NOW],
        tool_choice={"type": "function", "function": {"name": "now"}},
        n=3,
        seed=1,
        temperature=1.5,
    )
    for choice in answer.choices:
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "now"


def test_the_model_may_choose_and_its_text_stays_text(api: openai.OpenAI, tool_mesh: Mesh) -> None:
    asked: Any = {"model": tool_mesh.model_name, "messages": HI, "max_tokens": 20, "seed": 5, "temperature": 0}
    (free,) = api.chat.completions.create(**asked, tools=[ADD]).choices
    assert (free.finish_reason, free.message.tool_calls) == ("length", None)
    assert free.message.content
    (none,) = api.chat.completions.create(**asked, tools=[ADD], tool_choice="none").choices
    (without,) = api.chat.completions.create(**asked).choices
    assert none.message.content == without.message.content


class Now(BaseModel):
    size: bool


def test_strict_tools_of_the_package(api: openai.OpenAI, tool_mesh: Mesh) -> None:
    answer = api.chat.completions.parse(
        model=tool_mesh.model_name,
        messages=HI,
        tools=[openai.pydantic_function_tool(Now, name="now")],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Now)


def test_an_agent_s_turns_go_round(tool_mesh: Mesh) -> None:
    model = ChatOpenAI(base_url=f"{tool_mesh.url}/v1", api_key=SecretStr("none"), model=tool_mesh.model_name, seed=2)
    talk: list[Any] = [HumanMessage("0123456789")]
    called = model.bind_tools([ADD], tool_choice="add").invoke(talk)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert call["name"] == "add"
    talk += [called, ToolMessage("5", tool_call_id=str(call["id"]))]
    answer = model.bind(max_tokens=5).bind_tools([ADD]).invoke(talk)
    assert answer.response_metadata["token_usage"]["prompt_tokens"] > 100


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tools": ({"tools": [ADD]}, "tools"),
    "history": (
        {
            "messages": [
                *HI,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "a", "content": "5"},
            ]
        },
        "messages",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_template_without_tools_refuses_them_by_name(mesh: Mesh, case: tuple[dict[str, Any], str]) -> None:
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="chat template") as caught:
            client.chat.completions.create(**{"model": mesh.model_name, "messages": HI, **case[0]})
    assert caught.value.param == case[1]


def test_arguments_of_the_template_change_the_prompt(api: openai.OpenAI, tool_mesh: Mesh) -> None:
    counted = [
        api.chat.completions.create(
            model=tool_mesh.model_name, messages=HI, max_tokens=1, extra_body={"chat_template_kwargs": given}
        ).usage
        for given in ({}, {"enable_thinking": True}, {"enable_thinking": False})
    ]
    plain, thinking, thoughtless = (usage.prompt_tokens for usage in counted if usage is not None)
    assert (thinking, thoughtless) == (plain, plain + len("(none)"))
    for given, says in ({"thinking": False}, "reads only enable_thinking, not thinking"), ([], "must be an object"):
        with pytest.raises(openai.BadRequestError, match=says) as caught:
            api.chat.completions.create(
                model=tool_mesh.model_name, messages=HI, extra_body={"chat_template_kwargs": given}
            )
        assert caught.value.param == "chat_template_kwargs"


def test_bad_parameters_are_400_with_the_reason(api: openai.OpenAI, tool_mesh: Mesh) -> None:
    bad: Any = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "strng"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: strng") as caught:
        api.chat.completions.create(model=tool_mesh.model_name, messages=HI, tools=[bad])
    assert caught.value.param == "tools"
