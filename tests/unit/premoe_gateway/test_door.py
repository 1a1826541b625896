"""What needs a key and what does not, what limits answer, and what is noted of a request."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from premoe_gateway.access.keyring import Keyring
from premoe_gateway.domain import Prompt
from premoe_gateway.http import tracing
from premoe_gateway.http.app import create_app
from premoe_gateway.http.paths import OPEN
from premoe_gateway.metrics import GatewayMetrics
from premoe_gateway.service import Gateway
from premoe_servicekit.metrics import Metrics
from starlette.types import ASGIApp
from support.gateway_doubles import MODEL, EchoWorker, OneTask
from support.keys import replace_file, write_keys
from support.metrics import read

COMPLETION = {"model": MODEL, "prompt": "hi", "max_tokens": 2}
CLOSED = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/m"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("OPTIONS", "/v1/completions"),
    ("GET", "/v1"),
    ("GET", "/nothing"),
    ("GET", "/premoe/"),
    ("GET", "/console"),
    ("POST", "/tokenize"),
    ("GET", "/health/"),
    ("GET", "/HEALTH"),
    ("GET", "/%68ealth/../v1/models"),
]


class Bench:
    def __init__(self, path: Path, limits: dict[str, dict[str, int]], app: dict[str, Any]) -> None:
        self.path = path
        self.keys = write_keys(path, limits)
        self.clock = 0.0
        self.metrics = Metrics()
        self.worker = EchoWorker()
        service = Gateway([self.worker], OneTask(), on_unknown=None, timeout_s=30)
        keyring = Keyring(path, clock=lambda: self.clock)
        counted = GatewayMetrics(self.metrics, ["/v1/completions"])
        counted.show_keys(keyring)
        self.app = counted.around(create_app(service, keyring=keyring, **app))
        self.http = connected(self.app)

    def headers(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[name]}"}

    async def ask(self, name: str, **headers: str) -> httpx.Response:
        return await self.http.post("/v1/completions", json=COMPLETION, headers={**self.headers(name), **headers})


def connected(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://gateway")


@pytest.fixture
async def bench(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "keys.json", getattr(request, "param", {"alice": {}, "bob": {}}), {})
    async with made.http:
        yield made


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_everything_needs_a_key_but_what_is_open(bench: Bench, method: str, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {bench.keys['alice']}"}):
        answer = await bench.http.request(method, path, headers=headers)
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = await bench.http.request(method, path, headers=bench.headers("alice"))
    assert answer.status_code != 401


@pytest.mark.parametrize("path", sorted(OPEN))
async def test_what_is_open_asks_for_nothing(bench: Bench, path: str) -> None:
    assert (await bench.http.get(path)).status_code in (200, 503)


async def test_a_refusal_does_not_wait_for_the_body(bench: Bench) -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("the body is not for those who may not come in")
        yield b""

    answer = await bench.http.post("/v1/completions", content=endless())
    assert answer.status_code == 401


async def test_the_description_names_keys_only_where_there_are_some(bench: Bench) -> None:
    document = (await bench.http.get("/openapi.json")).json()
    assert document["paths"]["/v1/completions"]["post"]["security"] == [{"key": []}]
    assert "401" in document["paths"]["/v1/models"]["get"]["responses"]
    assert "security" not in document["paths"]["/health"]["get"]
    async with connected(create_app(Gateway((), None, on_unknown=None, timeout_s=1))) as http:
        assert "security" not in (await http.get("/openapi.json")).text


@pytest.mark.parametrize("bench", [{"alice": {"requests_per_minute": 2}, "bob": {}}], indirect=True)
async def test_limits_answer_429_and_when_to_come_again(bench: Bench) -> None:
    assert [(await bench.ask("alice")).status_code for _ in range(2)] == [200, 200]
    refused = await bench.ask("alice")
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert (await bench.ask("bob")).status_code == 200
    looked = await bench.http.get("/v1/models", headers=bench.headers("alice"))
    assert looked.status_code == 200


@pytest.mark.parametrize("bench", [{"alice": {"tokens_per_minute": 1}}], indirect=True)
async def test_tokens_are_counted_by_what_answers_took(bench: Bench) -> None:
    assert (await bench.ask("alice")).status_code == 200
    assert (await bench.ask("alice")).status_code == 429


async def test_a_broken_file_keeps_the_keys_and_shows_in_readiness_and_metrics(bench: Bench) -> None:
    assert (await bench.http.get("/ready")).json()["keys"] == "ok"
    assert read(bench.metrics).value("premoe:gateway_keys") == 2
    replace_file(bench.path, b"{")
    bench.clock += 10
    assert (await bench.ask("alice")).status_code == 200
    assert (await bench.http.get("/ready")).json()["keys"] == "stale"
    assert read(bench.metrics).value("premoe:gateway_keys_stale") == 1


async def test_usage_is_counted_by_the_key_s_name(bench: Bench) -> None:
    answers = [(await bench.ask("alice")).json() for _ in range(3)]
    await bench.http.post("/v1/completions", json={"model": "none"}, headers=bench.headers("bob"))
    await bench.http.get("/v1/models")
    found = read(bench.metrics)
    assert found.value("premoe:gateway_key_requests_total", key="alice", code="200") == 3
    assert found.value("premoe:gateway_key_requests_total", key="bob", code="400") == 1
    assert found.labels("premoe:gateway_key_requests_total", "key") == {"alice", "bob"}
    for kind, field in (("prompt", "prompt_tokens"), ("generation", "completion_tokens")):
        spent = sum(answer["usage"][field] for answer in answers)
        assert found.value(f"premoe:gateway_key_{kind}_tokens_total", key="alice") == spent > 0


async def test_choices_and_streams_cost_what_their_usage_says(bench: Bench) -> None:
    body = {**COMPLETION, "n": 3, "prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}}
    answer = await bench.http.post("/v1/completions", json=body, headers=bench.headers("bob"))
    usage = re.search(r'"usage":\{"prompt_tokens":(\d+),"completion_tokens":(\d+)', answer.text)
    assert usage is not None
    found = read(bench.metrics)
    assert found.value("premoe:gateway_key_prompt_tokens_total", key="bob") == int(usage[1])
    assert found.value("premoe:gateway_key_generation_tokens_total", key="bob") == int(usage[2])


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_cost_what_their_usage_says(bench: Bench, stream: bool) -> None:
    body = {"model": MODEL, "input": "hi", "stream": stream}
    answer = await bench.http.post("/v1/responses", json=body, headers=bench.headers("bob"))
    (prompt,) = re.findall(r'"input_tokens":(\d+)', answer.text)
    (generation,) = re.findall(r'"output_tokens":(\d+)', answer.text)
    found = read(bench.metrics)
    assert found.value("premoe:gateway_key_prompt_tokens_total", key="bob") == int(prompt) > 0
    assert found.value("premoe:gateway_key_generation_tokens_total", key="bob") == int(generation) > 0


async def test_a_caller_s_id_is_kept_where_it_is_plain(bench: Bench) -> None:
    for given in ("abc-1", "x" * 128, "req_01.A:b/c=@+"):
        assert (await bench.ask("alice", **{"x-request-id": given})).headers["x-request-id"] == given
    made = set()
    for given in ("x" * 129, "", "a b", "a\tb", "ü", "<script>", "a;b", '"'):
        answer = await bench.http.get("/v1/models", headers=[(b"x-request-id", given.encode())])
        made.add(answer.headers["x-request-id"])
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert len(made) == 8
    assert (await bench.http.get("/health", headers={"x-request-id": "probe"})).headers["x-request-id"] == "probe"


async def test_a_bug_has_an_id_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(prompt: Prompt, timeout_s: float) -> tuple[list[float], str]:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.worker, "probe", broken)
    answer = await bench.ask("alice", **{"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")


async def test_every_request_is_one_line_and_probes_none(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "premoe_gateway.http.calls"):
        await bench.ask("alice")
        await bench.http.get("/v1/models")
        await bench.http.get("/health")
    fields = [record.fields for record in caplog.records if record.name == "premoe_gateway.http.calls"]  # type: ignore[attr-defined]
    assert [(line["method"], line["path"], line["status"], line.get("key")) for line in fields] == [
        ("POST", "/v1/completions", 200, "alice"),
        ("GET", "/v1/models", 401, None),
    ]
    assert fields[0]["completion_tokens"] >= 1
    text = str(fields)
    assert not any(key in text for key in bench.keys.values())


async def test_the_span_names_request_and_key(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, spans = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    await bench.ask("alice", **{"x-request-id": "mine"})
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert (span.attributes["premoe.request_id"], span.attributes["premoe.key"]) == ("mine", "alice")


async def test_pages_can_read_a_refusal(tmp_path: Path) -> None:
    made = Bench(tmp_path / "keys.json", {}, {"cors_origins": ("https://pages.example",)})
    origin = {"origin": "https://pages.example"}
    async with made.http as http:
        refused = await http.get("/v1/models", headers=origin)
        preflight = await http.options("/v1/models", headers={**origin, "access-control-request-method": "GET"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://pages.example")
    assert preflight.status_code == 200
