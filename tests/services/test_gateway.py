"""The gateway over HTTP, with the real openai client in front and scripted gRPC servers behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2
from premoe_gateway.adapters.retrieval import GrpcRetrieval
from premoe_gateway.adapters.worker import GrpcWorker
from premoe_gateway.domain import Ask, Probed
from premoe_gateway.http.app import create_app
from premoe_gateway.http.server import HttpServer
from premoe_gateway.pool import WorkerPool
from premoe_gateway.service import Gateway
from premoe_gateway.targets import Targets
from premoe_servicekit.clients import channel
from support.fake_worker import MODEL, WEIGHTS, FakeRetrieval, FakeWorker, serving, until
from support.gateways import client, gateway
from uvicorn.protocols.http.h11_impl import H11Protocol

from premoe_runtime.formats.errors import Exhausted, InvalidInput, PremoeError, Unavailable

CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "add 1 and 2"}]
SYSTEM: ChatCompletionMessageParam = {"role": "system", "content": "Be brief."}


async def test_chat_recognises_the_task_and_says_what_it_did() -> None:
    worker, retrieval = FakeWorker(), FakeRetrieval()
    async with gateway(worker, retrieval=retrieval, on_unknown="reject") as url, client(url) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=[SYSTEM, *CHAT], seed=5, stop=["!"], top_p=0.5)
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 3, 10)
    record = answer.model_extra["premoe"] if answer.model_extra else {}
    assert record.pop("probe_ms") > 0
    assert record.pop("retrieve_ms") > 0
    assert record == {
        "pattern": "p-add",
        "task": "add",
        "decision": "specialist",
        "score": 0.875,
        "reason": "scripted",
        "retained_mass": 0.75,
        "swap": {"blobs_loaded": 3, "bytes_loaded": 12288, "milliseconds": 1.5},
        "numbers": "FP8, dequantised to BF16",
        "first_token_ms": 4.0,
        "decode_ms": 8.0,
    }
    assert retrieval.requests[0].weights_id == WEIGHTS
    assert retrieval.requests[0].on_unknown == patterns_pb2.ON_UNKNOWN_REJECT
    assert list(retrieval.requests[0].signature) == [0.5] * 4
    (request,) = worker.requests
    assert [(turn.role, turn.content) for turn in request.prompt.chat.messages] == [
        ("system", "Be brief."),
        ("user", "add 1 and 2"),
    ]
    assert worker.probes[0].prompt == request.prompt
    assert request.sampling == worker_pb2.Sampling(temperature=1.0, top_p=0.5, stop=["!"], seed=5, repetition_penalty=1)
    assert request.pattern.pattern_id == "p-add"


async def test_chat_streams_and_ends_with_usage() -> None:
    async with gateway(FakeWorker()) as url, client(url) as api:
        stream = await api.chat.completions.create(
            model=MODEL, messages=CHAT, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].model_extra is not None
    assert chunks[-2].model_extra["premoe"]["retained_mass"] == 0.75
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 10
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_is_server_sent_events_with_done_at_the_end() -> None:
    async with gateway(FakeWorker()) as url, httpx.AsyncClient() as http:
        body = {"model": MODEL, "prompt": "add", "stream": True}
        answer = await http.post(f"{url}/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["text"] == "one"
    assert "usage" not in json.loads(lines[-2].removeprefix("data: "))


async def test_completions_take_text_and_token_ids() -> None:
    worker = FakeWorker()
    async with gateway(worker) as url, client(url) as api:
        text = await api.completions.create(model=MODEL, prompt="add", max_tokens=9)
        await api.completions.create(model=MODEL, prompt=[5, 6], temperature=0)
    assert text.choices[0].text == "one two three"
    assert worker.requests[0].prompt.text == "add"
    assert worker.requests[0].sampling.max_tokens == 9
    assert list(worker.requests[1].prompt.token_ids.ids) == [5, 6]
    assert worker.requests[1].sampling == worker_pb2.Sampling(max_tokens=16, top_p=1.0, repetition_penalty=1)


async def test_what_the_checkpoint_recommends_holds_where_a_request_names_nothing() -> None:
    advice = worker_pb2.Sampling(temperature=0.5, top_p=0.75, top_k=20, min_p=0.25, repetition_penalty=1.25)
    worker = FakeWorker(recommended=advice)
    async with gateway(worker) as url, client(url) as api:
        await api.chat.completions.create(model=MODEL, messages=CHAT)
        named = {"top_k": -1, "min_p": 0, "repetition_penalty": 1}
        await api.chat.completions.create(
            model=MODEL, messages=CHAT, temperature=0, top_p=1, extra_body=named, max_tokens=3
        )
    assert [request.sampling for request in worker.requests] == [
        advice,
        worker_pb2.Sampling(temperature=0, top_p=1, top_k=0, max_tokens=3, repetition_penalty=1),
    ]


async def test_several_prompts_and_choices_are_one_answer() -> None:
    worker, retrieval = FakeWorker(), FakeRetrieval()
    async with gateway(worker, retrieval=retrieval) as url, client(url) as api:
        answer = await api.completions.create(model=MODEL, prompt=["add", "sub"], n=2, seed=5)
        stream = await api.completions.create(
            model=MODEL, prompt=["add", "sub"], n=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {"one two three"}
    assert answer.usage is not None
    # Seven tokens of each prompt, three of each choice.
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 12)
    asked = sorted((request.prompt.text, request.sampling.seed) for request in worker.requests[:4])
    assert asked == [("add", 5), ("add", 6), ("sub", 5), ("sub", 6)]
    assert len(retrieval.requests) == 4
    texts = ["", "", "", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["one two three"] * 4
    assert sum(chunk.choices[0].finish_reason == "stop" for chunk in chunks[:-1]) == 4
    assert chunks[-1].usage == answer.usage


@pytest.mark.parametrize("stream", [False, True])
async def test_one_choice_that_fails_ends_the_answer_and_the_others(stream: bool) -> None:
    worker = FakeWorker(fault=InvalidInput("no", reason="PROMPT_EMPTY"))
    async with gateway(worker) as url, client(url) as api:
        with pytest.raises(openai.BadRequestError, match="no"):
            await api.chat.completions.create(model=MODEL, messages=CHAT, n=3, stream=stream)
    held = FakeWorker(hold=asyncio.Event())
    async with gateway(held) as url:
        http = httpx.AsyncClient()
        body = {"model": MODEL, "messages": CHAT, "n": 3, "stream": stream}
        request = asyncio.create_task(_read(http, f"{url}/v1/chat/completions", body))
        await until(lambda: len(held.requests) == 3)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await http.aclose()
        await until(lambda: held.cancellations == 3)


async def test_retrieval_is_told_of_every_turn() -> None:
    worker, retrieval = FakeWorker(), FakeRetrieval()
    talk: list[ChatCompletionMessageParam] = [*CHAT, {"role": "assistant", "content": "3"}, *CHAT]
    async with gateway(worker, retrieval=retrieval) as url, client(url) as api:
        await api.chat.completions.create(model=MODEL, messages=CHAT)
        await api.chat.completions.create(model=MODEL, messages=talk)
    one, several = retrieval.requests
    assert (list(one.alone), list(one.earlier)) == ([], [])
    assert list(several.alone) == [0, 0, 0, 1]
    assert [list(each.values) for each in several.earlier] == [[1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "decision", "pattern_id"),
    [
        ("rev", patterns_pb2.DECISION_SPECIALIST, "p-rev"),
        ("p-add", patterns_pb2.DECISION_SPECIALIST, "p-add"),
        ("generalist", patterns_pb2.DECISION_GENERALIST, "p-gen"),
        ("full", patterns_pb2.DECISION_FULL, ""),
    ],
)
async def test_a_named_pattern_needs_no_probe(
    name: str, decision: patterns_pb2.Decision.ValueType, pattern_id: str
) -> None:
    worker, retrieval = FakeWorker(), FakeRetrieval()
    async with gateway(worker, retrieval=retrieval) as url, client(url) as api:
        answer = await api.chat.completions.create(
            model=MODEL, messages=CHAT, extra_body={"pattern": name, "active_experts": 1}
        )
    assert (worker.requests[0].pattern.decision, worker.requests[0].pattern.pattern_id) == (decision, pattern_id)
    assert worker.requests[0].active_experts == 1
    assert not worker.probes
    assert not retrieval.requests
    assert answer.model_extra is not None
    assert answer.model_extra["premoe"]["score"] is None


JSON = {"content-type": "application/json; charset=utf-8"}
BAD_BODIES: list[tuple[str, dict[str, object], str, str]] = [
    ("n", {"n": 0}, "n", "n: must be greater than or equal to 1"),
    ("logprobs", {"logprobs": 3}, "logprobs", "logprobs: must be a valid boolean"),
    ("tools", {"tools": [{"type": "function"}]}, "tools[0].function", "must be an object with a name"),
    ("penalty", {"presence_penalty": 3}, "presence_penalty", "presence_penalty: must be less than or equal to 2"),
    ("unknown", {"fancy": 5}, "fancy", "fancy: not a parameter of this API"),
    ("temperature", {"temperature": -1}, "temperature", "temperature: must be greater than or equal to 0"),
    ("tokens", {"max_tokens": 0}, "max_tokens", "max_tokens: must be greater than or equal to 1"),
    ("messages", {"messages": []}, "messages", "messages: must hold at least one message"),
    (
        "role",
        {"messages": [{"role": "function", "content": "x"}]},
        "messages[0].role",
        "must be system, developer, user",
    ),
    ("quoted", {"\ud800" * 9999: 1}, "\ufffd" * 497 + "...", "\ufffd" * 497 + "..."),
    ("last", {"messages": [*CHAT, {"role": "assistant", "content": "x"}]}, "messages", "must be the user's"),
]


@pytest.mark.parametrize(
    ("extra", "param", "message"), [case[1:] for case in BAD_BODIES], ids=[c[0] for c in BAD_BODIES]
)
async def test_bad_parameters_are_400_and_name_the_parameter(
    extra: dict[str, object], param: str, message: str
) -> None:
    async with gateway(FakeWorker()) as url, httpx.AsyncClient() as http:
        body = {"model": MODEL, "messages": CHAT, **extra}
        answer = await http.post(f"{url}/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]


BAD_POSTS: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no JSON": (b"{", JSON, 400, "the body is not JSON"),
    "deep": (b'{"metadata":' + b"[" * 50_000, JSON, 400, "the body is nested too deeply"),
    "no type": (b"{}", {}, 415, "content-type: application/json"),
    "form": (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, "content-type: application/json"),
    "too large": (b'"' + b"x" * 2**16 + b'"', JSON, 413, "larger than 65536 bytes"),
    "far too large": (b'"' + b"x" * 2**20 + b'"', JSON, 413, "larger than 65536 bytes"),
}


@pytest.mark.parametrize("case", BAD_POSTS.values(), ids=BAD_POSTS.keys())
async def test_bodies_that_cannot_be_read(case: tuple[bytes, dict[str, str], int, str]) -> None:
    content, headers, status, said = case
    async with gateway(FakeWorker(), max_body_bytes=2**16) as url, httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/completions", content=content, headers=headers)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


async def test_a_bug_is_500_in_openai_s_shape_and_names_no_class(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(GrpcWorker):
        async def probe(self, ask: Ask, timeout_s: float) -> Probed:
            raise ZeroDivisionError("a bug")

    async with serving(FakeWorker()) as server, channel(server.address) as opened:
        service = Gateway([Broken(server.address, opened)], None, on_unknown=None, timeout_s=30)
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            answer = await http.post("/v1/chat/completions", json={"model": MODEL, "messages": CHAT})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "ZeroDivision" not in answer.text


async def test_a_stop_tells_every_client_why() -> None:
    """With the grace period over, or cut short: error event for a stream, 503 for who waits for the whole."""
    held = FakeWorker(hold=asyncio.Event())
    async with stoppable(held) as (url, stop), client(url) as api:
        stream = await api.chat.completions.create(model=MODEL, messages=CHAT, stream=True)
        waiting = asyncio.create_task(api.chat.completions.create(model=MODEL, messages=CHAT))
        await until(lambda: len(held.requests) == 2)
        stopping = asyncio.create_task(stop())
        with pytest.raises(openai.APIError, match="the gateway is stopping"):
            await _collect(stream, [])
        with pytest.raises(openai.InternalServerError, match="the gateway is stopping") as caught:
            await waiting
        await stopping
    assert (caught.value.status_code, caught.value.code) == (503, "stopping")


@asynccontextmanager
async def stoppable(worker: FakeWorker) -> AsyncIterator[tuple[str, Callable[[], Coroutine[Any, Any, None]]]]:
    """The URL of a gateway over one worker, and what stops it as a second signal does."""
    async with serving(worker) as server, serving(FakeRetrieval()) as patterns, channel(patterns.address) as known:
        service = Gateway((), GrpcRetrieval(patterns.address, known), on_unknown=None, timeout_s=30)
        pool = WorkerPool(service, Targets([server.address]), lambda endpoint: channel(endpoint.address))
        await pool.update()
        http = HttpServer(create_app(service), host="127.0.0.1", port=0, grace_s=30)

        async def cut() -> None:
            service.stop()
            await pool.close()

        async def stop() -> None:
            force = asyncio.Event()
            force.set()
            await http.stop(force, cut)

        yield await http.start(), stop


async def test_browsers_get_their_preflight_where_the_origin_is_allowed() -> None:
    asked = {
        "origin": "https://pages.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with gateway(FakeWorker(), cors_origins=("https://pages.example",)) as url, httpx.AsyncClient() as http:
        allowed = await http.options(f"{url}/v1/chat/completions", headers=asked)
        other = await http.options(f"{url}/v1/chat/completions", headers={**asked, "origin": "https://else.example"})
        refused = await http.post(f"{url}/v1/completions", json={}, headers={"origin": "https://pages.example"})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://pages.example")
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in other.headers
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, "https://pages.example")
    async with gateway(FakeWorker()) as url, httpx.AsyncClient() as http:
        assert "access-control-allow-origin" not in (await http.options(f"{url}/v1/models", headers=asked)).headers


def test_the_parser_is_ours_to_choose_and_connections_outlive_the_pools_in_front() -> None:
    server = HttpServer(create_app(Gateway((), None, on_unknown=None, timeout_s=1)), host="", port=0, grace_s=1)
    assert isinstance(server.config.http, type)
    assert issubclass(server.config.http, H11Protocol)
    assert server.config.timeout_keep_alive > 90


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (InvalidInput("prompt is empty", reason="PROMPT_EMPTY"), 400, "prompt_empty"),
        (Exhausted("queue is full", reason="QUEUE_FULL"), 429, "queue_full"),
        (Unavailable("store is down", reason="UNAVAILABLE"), 503, "unavailable"),
        (Unavailable("too late", reason="DEADLINE_EXCEEDED"), 504, "deadline_exceeded"),
        (PremoeError("a bug"), 500, "internal"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_s_error_keeps_its_meaning(fault: PremoeError, status: int, code: str, stream: bool) -> None:
    async with gateway(FakeWorker(fault=fault)) as url, client(url) as api:
        with pytest.raises(openai.APIStatusError) as caught:
            await api.chat.completions.create(model=MODEL, messages=CHAT, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (status, code)


async def test_an_error_in_mid_stream_is_told_and_nothing_is_done() -> None:
    worker = FakeWorker(fault=Unavailable("store is down"), fault_after=1)
    async with gateway(worker) as url, client(url) as api:
        stream = await api.chat.completions.create(model=MODEL, messages=CHAT, stream=True)
        text: list[str] = []
        with pytest.raises(openai.APIError, match="store is down"):
            await _collect(stream, text)
    assert "".join(text) == "one"


async def _collect(stream: openai.AsyncStream[ChatCompletionChunk], text: list[str]) -> None:
    async for chunk in stream:
        text.append(chunk.choices[0].delta.content or "")


async def test_unknown_names_are_404() -> None:
    async with gateway(FakeWorker()) as url, client(url) as api:
        with pytest.raises(openai.NotFoundError, match="model 'other' is not served here; there is tiny"):
            await api.chat.completions.create(model="other", messages=CHAT)
        with pytest.raises(openai.NotFoundError, match="pattern 'nope' is not in the live set"):
            await api.chat.completions.create(model=MODEL, messages=CHAT, extra_body={"pattern": "nope"})
        with pytest.raises(openai.NotFoundError):
            await api.models.retrieve("other")


async def test_an_unknown_task_under_reject_is_422() -> None:
    retrieval = FakeRetrieval(decision=patterns_pb2.DECISION_REJECT)
    async with gateway(FakeWorker(), retrieval=retrieval) as url, client(url) as api:
        with pytest.raises(openai.UnprocessableEntityError, match="no stored task fits") as caught:
            await api.chat.completions.create(model=MODEL, messages=CHAT)
    assert caught.value.code == "unknown_task"


async def test_without_retrieval_only_full_can_be_named() -> None:
    async with gateway(FakeWorker(), without_retrieval=True) as url, client(url) as api:
        with pytest.raises(openai.BadRequestError, match="no retrieval service"):
            await api.chat.completions.create(model=MODEL, messages=CHAT)
        answer = await api.chat.completions.create(model=MODEL, messages=CHAT, extra_body={"pattern": "full"})
    assert answer.choices[0].message.content == "one two three"


async def test_retrieval_down_is_503() -> None:
    retrieval = FakeRetrieval(fault=Unavailable("index is down"))
    async with gateway(FakeWorker(), retrieval=retrieval) as url, client(url) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await api.chat.completions.create(model=MODEL, messages=CHAT)
    assert caught.value.status_code == 503


async def test_models_health_and_wrong_paths() -> None:
    async with gateway(FakeWorker()) as url, client(url) as api, httpx.AsyncClient() as http:
        models = await api.models.list()
        model = await api.models.retrieve(MODEL)
        assert [entry.id for entry in models.data] == [MODEL]
        assert model.model_extra is not None
        assert model.model_extra["premoe"]["budget"] == "2/4"
        assert (await http.get(f"{url}/health")).status_code == 200
        assert (await http.get(f"{url}/healthz")).json() == {"status": "ok"}
        wrong = await http.get(f"{url}/v1/embeddings")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "no_such_path")
        method = await http.get(f"{url}/v1/completions")
        assert (method.status_code, method.headers["allow"]) == (405, "POST")


async def test_unhealthy_workers_are_skipped() -> None:
    sick, well = FakeWorker(), FakeWorker()
    async with gateway(sick, well, healthy=(False, True)) as url, client(url) as api:
        for _ in range(3):
            await api.chat.completions.create(model=MODEL, messages=CHAT)
    assert (len(sick.requests), len(well.requests)) == (0, 3)


async def test_no_worker_is_503() -> None:
    async with gateway(FakeWorker(), healthy=(False,)) as url, client(url) as api, httpx.AsyncClient() as http:
        with pytest.raises(openai.InternalServerError, match="no worker answers"):
            await api.chat.completions.create(model=MODEL, messages=CHAT)
        assert (await http.get(f"{url}/health")).status_code == 503


async def test_another_worker_takes_over_before_the_first_event() -> None:
    down, well = FakeWorker(fault=Unavailable("draining", reason="DRAINING")), FakeWorker(waiting=2)
    async with gateway(down, well) as url, client(url) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=CHAT)
    assert answer.choices[0].message.content == "one two three"
    assert (len(down.requests), len(well.requests)) == (1, 1)


async def test_a_pattern_stays_with_its_worker() -> None:
    workers = FakeWorker(), FakeWorker()
    async with gateway(*workers) as url, client(url) as api:
        for task in ("add", "rev", "add", "rev", "rev"):
            await api.chat.completions.create(model=MODEL, messages=CHAT, extra_body={"pattern": task})
    asked = [[request.pattern.task for request in worker.requests] for worker in workers]
    assert sorted(asked) == [["add"] * 2, ["rev"] * 3]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_the_sequence(stream: bool) -> None:
    worker = FakeWorker(hold=asyncio.Event())
    async with gateway(worker) as url:
        http = httpx.AsyncClient()
        body = {"model": MODEL, "messages": CHAT, "stream": stream}
        request = asyncio.create_task(_read(http, f"{url}/v1/chat/completions", body))
        await until(lambda: bool(worker.requests))
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await http.aclose()
        async with asyncio.timeout(10):
            await worker.cancelled.wait()


async def _read(http: httpx.AsyncClient, url: str, body: dict[str, object]) -> None:
    async with http.stream("POST", url, json=body) as answer:
        async for _ in answer.aiter_lines():
            pass


async def test_a_deadline_is_504() -> None:
    async with gateway(FakeWorker(hold=asyncio.Event()), timeout_s=0.3) as url, client(url) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await api.chat.completions.create(model=MODEL, messages=CHAT)
    assert caught.value.status_code == 504
