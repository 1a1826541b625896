"""The real openai package against a whole mesh of processes."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from premoe_local.mesh import Mesh
from support.mesh import ALPHABETS, UNKNOWN, prompts
from support.request_fuzz import PATHS, body, check

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch


@pytest.fixture
def api(mesh: Mesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def record(answer: ChatCompletion) -> dict[str, Any]:
    assert answer.model_extra is not None
    found: dict[str, Any] = answer.model_extra["premoe"]
    return found


def test_models(api: openai.OpenAI, mesh: Mesh) -> None:
    (model,) = api.models.list().data
    assert model.id == mesh.model_name == "qwen3_moe"
    assert model.model_extra is not None
    details = model.model_extra["premoe"]
    assert (details["budget"], details["slots_per_layer"], details["experts_per_layer"]) == ("2/4", 6, 16)


@pytest.mark.parametrize("task", ALPHABETS)
def test_chat_recognises_the_task(api: openai.OpenAI, mesh: Mesh, task: str) -> None:
    found = []
    for prompt in prompts(task, 3, seed=7):
        answer = api.chat.completions.create(model=mesh.model_name, messages=user(prompt), max_tokens=4, temperature=0)
        found.append(record(answer))
        assert answer.usage is not None
        assert 1 <= answer.usage.completion_tokens <= 4
        assert answer.usage.prompt_tokens == 24 + 2
    recognised = [entry for entry in found if entry["decision"] == "specialist"]
    assert recognised
    assert {entry["task"] for entry in recognised} == {task}
    for entry in found:
        assert 0 < entry["retained_mass"] < 1
        assert entry["first_token_ms"] > 0
        assert entry["probe_ms"] > 0


def test_a_turn_has_its_own_task_whatever_came_before_it(api: openai.OpenAI, mesh: Mesh) -> None:
    before: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "x" * 40},
        *user(prompts("digits", 1, seed=7)[0]),
        {"role": "assistant", "content": "yes"},
    ]

    def asked(messages: list[ChatCompletionMessageParam]) -> dict[str, Any]:
        answer = api.chat.completions.create(model=mesh.model_name, messages=messages, max_tokens=1)
        return record(answer)

    known = [prompt for prompt in prompts("capitals", 3, seed=7) if asked(user(prompt))["decision"] == "specialist"]
    assert known
    for prompt in known:
        behind = asked([*before, *user(prompt)])
        assert (behind["decision"], behind["task"]) == ("specialist", "capitals")


def test_an_unknown_prompt_gets_the_generalist(api: openai.OpenAI, mesh: Mesh) -> None:
    answer = api.chat.completions.create(model=mesh.model_name, messages=user(UNKNOWN), max_tokens=2)
    assert record(answer)["decision"] == "generalist"
    assert "unknown" in record(answer)["reason"]


def test_streamed_and_whole_answers_are_equal(api: openai.OpenAI, mesh: Mesh) -> None:
    text = prompts("digits", 1, seed=3)[0]
    whole = api.chat.completions.create(model=mesh.model_name, messages=user(text), max_tokens=12, temperature=0)
    stream = api.chat.completions.create(
        model=mesh.model_name,
        messages=user(text),
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    final = next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason)
    assert final.model_extra is not None
    assert final.model_extra["premoe"]["pattern"] == record(whole)["pattern"]


def test_a_named_pattern_is_obeyed(api: openai.OpenAI, mesh: Mesh) -> None:
    answer = api.chat.completions.create(
        model=mesh.model_name,
        messages=user(prompts("digits", 1)[0]),
        max_tokens=2,
        extra_body={"pattern": "vowels", "active_experts": 1},
    )
    assert (record(answer)["task"], record(answer)["decision"]) == ("vowels", "specialist")


def test_completions_and_seeds(api: openai.OpenAI, mesh: Mesh) -> None:
    answers = [
        api.completions.create(model=mesh.model_name, prompt="abc", max_tokens=8, seed=seed, temperature=1.5)
        for seed in (11, 11, 12)
    ]
    assert answers[0].choices[0].text == answers[1].choices[0].text
    assert answers[0].choices[0].text != answers[2].choices[0].text
    assert answers[0].usage is not None
    assert answers[0].usage.prompt_tokens == 3
    stream = api.completions.create(model=mesh.model_name, prompt=[5, 6, 7], max_tokens=4, temperature=0, stream=True)
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")


BAD_REQUESTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "empty": ({"messages": user("")}, 400, "prompt_empty"),
    "over-long": ({"messages": user("x" * 300)}, 400, "context_length_exceeded"),
    "full without slots": ({"extra_body": {"pattern": "full"}}, 400, "full_needs_all_slots"),
    "unknown pattern": ({"extra_body": {"pattern": "nope"}}, 404, "pattern_not_found"),
    "too many experts": ({"extra_body": {"active_experts": 9}}, 400, "active_experts_invalid"),
    "unknown model": ({"model": "other"}, 404, "model_not_found"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests(api: openai.OpenAI, mesh: Mesh, case: tuple[dict[str, Any], int, str], stream: bool) -> None:
    changes, status, code = case
    request = {"model": mesh.model_name, "messages": user("0123456789"), "max_tokens": 2, "stream": stream, **changes}
    with pytest.raises(openai.APIStatusError) as caught:
        api.chat.completions.create(**request)
    assert (caught.value.status_code, caught.value.code) == (status, code)


def test_odd_requests_never_end_in_a_500(mesh: Mesh) -> None:
    """Some of the fuzz of the gateway alone, down to the worker."""
    draw = random.Random(9)
    found: set[int] = set()
    with httpx.Client(base_url=mesh.url, timeout=60) as http:
        for number in range(240):
            path = draw.choice(PATHS[:3])
            data = body(draw, path, mesh.model_name)
            answer = http.post(path, content=data, headers={"content-type": "application/json"})
            headers = {name.lower().encode(): value.encode() for name, value in answer.headers.items()}
            try:
                check(answer.status_code, headers, answer.content, "POST")
            except Exception as error:
                raise AssertionError(f"request {number}: {path} {data!r}: {answer.text}") from error
            found.add(answer.status_code)
    assert {200, 400} <= found <= {200, 400, 404}  # 404: a pattern, or a model, of another name


def test_the_page_s_example_runs(mesh: Mesh) -> None:
    (code,) = re.findall(r"```\n(from openai.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", mesh.url).replace("my-moe", mesh.model_name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


async def test_a_request_that_comes_while_another_decodes_starts_before_it_ends(mesh: Mesh) -> None:
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        ends: list[str] = []
        first_begun = asyncio.Event()

        async def ask(name: str, task: str, tokens: int) -> None:
            stream = await client.chat.completions.create(
                model=mesh.model_name,
                messages=user(prompts(task, 1, seed=5)[0]),
                max_tokens=tokens,
                temperature=0,
                stream=True,
                extra_body={"pattern": task},
            )
            async for _ in stream:
                first_begun.set()
            ends.append(name)

        long = asyncio.create_task(ask("long", "digits", 200))
        await first_begun.wait()
        await ask("short", "vowels", 2)
        await long
    assert ends == ["short", "long"]
