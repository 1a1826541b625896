"""API keys as clients meet them: the real openai package in front, scripted gRPC workers behind."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from premoe_gateway.access.keyring import Keyring
from support.fake_worker import MODEL, FakeWorker, until
from support.gateways import client, gateway
from support.keys import write_keys

CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "add 1 and 2"}]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def ask(api: openai.AsyncOpenAI) -> str | None:
    answer = await api.chat.completions.create(model=MODEL, messages=CHAT)
    return answer.choices[0].message.content


async def test_the_real_client_is_let_in_by_its_key_alone(tmp_path: Path) -> None:
    made = write_keys(tmp_path / "keys.json", {"alice": {}})
    async with gateway(FakeWorker(), keyring=Keyring(tmp_path / "keys.json")) as url:
        async with client(url, made["alice"]) as api:
            assert await ask(api) == "one two three"
            assert [model.id async for model in api.models.list()] == [MODEL]
        async with client(url, "wrong") as api:
            with pytest.raises(openai.AuthenticationError) as caught:
                await ask(api)
            with pytest.raises(openai.AuthenticationError):
                await api.models.list()
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.request_id


async def test_no_two_keys_share_what_was_computed_of_a_prompt(tmp_path: Path) -> None:
    made, worker = write_keys(tmp_path / "keys.json", {"alice": {}, "bob": {}}), FakeWorker()
    async with gateway(worker, keyring=Keyring(tmp_path / "keys.json")) as url:
        for name in ("alice", "alice", "bob"):
            async with client(url, made[name]) as api:
                for salt in ("", "one", "alice"):
                    await api.chat.completions.create(model=MODEL, messages=CHAT, extra_body={"cache_salt": salt})
                await api.completions.create(model=MODEL, prompt="hi")
                await api.responses.create(model=MODEL, input="hi")
    salts = [request.cache_salt for request in worker.requests]
    once, again, other = salts[:5], salts[5:10], salts[10:]
    assert once == again
    assert len(set(once)) == 3
    assert once[3] == once[4] == once[0]
    assert not set(once) & set(other)


async def test_a_key_revoked_in_mid_stream_ends_with_the_answer_that_runs(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    made = write_keys(path, {"alice": {}})
    worker = FakeWorker(hold=asyncio.Event())
    assert worker.hold is not None
    async with gateway(worker, keyring=Keyring(path, clock=clock)) as url, client(url, made["alice"]) as api:
        stream = await api.chat.completions.create(model=MODEL, messages=CHAT, stream=True)
        first = [await anext(aiter(stream)) for _ in range(2)]
        write_keys(path, {"bob": {}})
        clock.now += 10
        with pytest.raises(openai.AuthenticationError):
            await ask(api)
        worker.hold.set()
        chunks = [*first, *[chunk async for chunk in stream]]
        with pytest.raises(openai.AuthenticationError):
            await ask(api)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "one two three"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_limits_are_the_client_s_rate_limit_error(tmp_path: Path) -> None:
    made = write_keys(tmp_path / "keys.json", {"alice": {"requests_per_minute": 1}})
    async with gateway(FakeWorker(), keyring=Keyring(tmp_path / "keys.json")) as url:
        async with client(url, made["alice"]) as api:
            await ask(api)
            with pytest.raises(openai.RateLimitError) as caught:
                await ask(api)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


async def test_a_stream_holds_its_place_until_it_ends_or_its_client_leaves(tmp_path: Path) -> None:
    made = write_keys(tmp_path / "keys.json", {"alice": {"concurrent": 1}})
    worker = FakeWorker(hold=asyncio.Event())
    assert worker.hold is not None
    async with gateway(worker, keyring=Keyring(tmp_path / "keys.json")) as url, client(url, made["alice"]) as api:
        stream = await api.chat.completions.create(model=MODEL, messages=CHAT, stream=True)
        await anext(aiter(stream))
        with pytest.raises(openai.RateLimitError, match="at a time"):
            await ask(api)
        await stream.close()
        await until(worker.cancelled.is_set, seconds=60)
        worker.hold.set()
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await ask(api) == "one two three"
                    break
                except openai.RateLimitError:  # the gateway hears of it a moment later
                    await asyncio.sleep(0.01)


async def test_an_answer_that_nobody_waits_for_is_paid_for_too(tmp_path: Path) -> None:
    """Leaving before the end would be a way past the limit."""
    made = write_keys(tmp_path / "keys.json", {"alice": {"tokens_per_minute": 8}})
    worker = FakeWorker(hold=asyncio.Event())
    async with gateway(worker, keyring=Keyring(tmp_path / "keys.json")) as url, client(url, made["alice"]) as api:
        stream = await api.chat.completions.create(model=MODEL, messages=CHAT, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await until(worker.cancelled.is_set, seconds=60)
        async with asyncio.timeout(60):
            with pytest.raises(openai.RateLimitError, match="8 tokens a minute"):
                await until_refused(api)


async def until_refused(api: openai.AsyncOpenAI) -> None:
    """Ask for what costs nothing: the gateway hears a moment later that a client left."""
    while True:
        with contextlib.suppress(openai.NotFoundError):
            await api.completions.create(model="none", prompt="")
