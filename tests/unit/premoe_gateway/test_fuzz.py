"""20,000 requests that nobody should send: each gets an answer or a refusal in OpenAI's shape, and none a 500."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from premoe_gateway.http import create_app
from premoe_gateway.service import Gateway
from starlette.applications import Starlette
from support.gateway_doubles import MODEL, EchoWorker, OneTask

REQUESTS = 20_000
BATCHES = 8
DEEP = "[" * 200


async def send(
    app: Starlette, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of one request, as a server calls the application."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "server": ("gateway", 80),
        "client": ("client", 1),
    }
    sent: list[dict[str, Any]] = []
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop()
        await asyncio.Event().wait()  # as from a client that waits for its answer
        raise AssertionError

    async def put(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, put)
    start = sent[0]
    return start["status"], dict(start["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.0, 0.5, -0.5, 1e308, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**30, "", "a",
    "0", "text", "\ud83d", "\udc00x", "\x00", "\u2028", "x" * 300, "auto", "none", "user", "task", "p", "full",
    "generalist",
]  # fmt: skip
NAMES = [
    "model", "messages", "prompt", "stream", "stream_options", "temperature", "top_p", "top_k", "stop", "seed", "n",
    "max_tokens", "max_completion_tokens", "pattern", "active_experts", "logprobs", "top_logprobs", "tools", "echo",
    "tool_choice", "response_format", "logit_bias", "presence_penalty", "frequency_penalty", "suffix", "best_of",
    "user", "metadata", "store", "service_tier", "reasoning_effort", "modalities", "audio", "prediction", "verbosity",
    "parallel_tool_calls", "functions", "function_call", "role", "content", "type", "text", "include_usage",
    "tool_calls", "refusal", "name", "cache_control", "image_url", "\ud800", "",
]  # fmt: skip
HEADERS = [
    b"application/json", b"application/json; charset=utf-8", b"text/plain", b"", b"\xff\xfe",
    b"application/x-www-form-urlencoded",
]  # fmt: skip
PATHS = [
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/m", "/v1/models/\udcff", "/v1/models/\u2028",
    "/health", "/healthz", "/ready", "/version", "/openapi.json", "/", "/v1", "/v1/chat/completions/", "/v1/embeddings",
    "/\ud800",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "nonsense"]


def value(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON, mostly small."""
    kind = draw.random()
    if depth > 3 or kind < 0.6:
        return draw.choice(SCALARS)
    if kind < 0.8:
        return [value(draw, depth + 1) for _ in range(draw.randrange(6))]
    return {draw.choice(NAMES): value(draw, depth + 1) for _ in range(draw.randrange(5))}


def body(draw: random.Random, path: str) -> bytes:
    """A good request with some of its fields exchanged; at times its bytes are broken too."""
    good: dict[str, Any] = {"model": MODEL}
    if "chat" in path:
        parts = [{"type": "text", "text": "part"}]
        good["messages"] = [{"role": "user", "content": draw.choice(["hi", parts])}]
    else:
        good["prompt"] = draw.choice(["hi", [1, 2], ["hi"], [[1]]])
    for _ in range(draw.randrange(4)):
        good[draw.choice(NAMES)] = value(draw)
    if "messages" in good and draw.random() < 0.3 and isinstance(good["messages"], list):
        good["messages"].insert(0, {"role": draw.choice(["user", "assistant", value(draw)]), "content": value(draw)})
        good["messages"][0][draw.choice(NAMES)] = value(draw)
    data = json.dumps(good).encode()
    broken = draw.random()
    if broken < 0.05:
        cut = draw.randrange(len(data))
        return data[:cut] + bytes([draw.randrange(256)]) + data[cut + draw.randrange(3) :]
    if broken < 0.06:
        return data.replace(b'"hi"', draw.choice([b"NaN", b"1e999", b"-Infinity", (DEEP * 20).encode(), b"1" * 5000]))
    return data


def check(status: int, headers: dict[bytes, bytes], answer: bytes, method: str) -> None:
    """In OpenAI's shape, or an answer."""
    assert status < 500
    text = answer.decode()
    assert "Traceback" not in text
    if status == 200 and headers[b"content-type"].startswith(b"text/event-stream"):
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert events[-1] == "[DONE]"
        assert all("choices" in json.loads(event) for event in events[:-1])
        return
    assert headers[b"content-type"] == b"application/json"
    if method == "HEAD":
        return
    document = json.loads(text)
    if status == 200:
        return
    error = document["error"]
    assert error["message"]
    assert len(error["message"]) <= 500
    assert error["type"] == "invalid_request_error"
    for leak in ("Input should", "pydantic", "premoe_", "_Chat", "_Completion", "instance of", "Error("):
        assert leak not in error["message"]


@pytest.mark.parametrize("batch", range(BATCHES))
async def test_no_request_ends_in_a_500_or_in_text(batch: int) -> None:
    service = Gateway([EchoWorker()], OneTask(), on_unknown=None, timeout_s=30)
    await service.refresh()
    app = create_app(service, max_body_bytes=1 << 16)
    draw = random.Random(batch)
    found: dict[int, int] = {}
    for number in range(REQUESTS // BATCHES):
        usual = draw.random() < 0.9
        path = draw.choice(PATHS[:2]) if usual else draw.choice(PATHS)
        method = "POST" if usual else draw.choice(METHODS)
        media_type = HEADERS[0] if draw.random() < 0.95 else draw.choice(HEADERS)
        data = body(draw, path)
        headers = [(b"host", b"gateway"), (b"content-type", media_type), (b"content-length", str(len(data)).encode())]
        try:
            status, answered, answer = await send(app, method, path, headers, data)
            check(status, answered, answer, method)
        except Exception as error:
            raise AssertionError(f"batch {batch}, request {number}: {method} {path} {data!r}") from error
        found[status] = found.get(status, 0) + 1
    # The fuzz would prove little if everything were refused at the door.
    assert found[200] > 200
    assert found[400] > 200
    assert {404, 405, 415} <= found.keys()
