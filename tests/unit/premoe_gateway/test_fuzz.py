"""20,000 requests that nobody should send: each gets an answer or a refusal in OpenAI's shape, and none a 500."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from premoe_gateway.http.app import create_app
from premoe_gateway.search.executor import Searcher
from premoe_gateway.search.verifiers.named import NamedVerifiers
from premoe_gateway.search.verifiers.opening import Verifiers
from premoe_gateway.service import Gateway
from starlette.applications import Starlette
from support.gateway_doubles import MODEL, EchoWorker, OneTask
from support.request_fuzz import HEADERS, METHODS, PATHS, body, check

REQUESTS = 20_000
BATCHES = 8


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


@pytest.mark.parametrize("batch", range(BATCHES))
async def test_no_request_ends_in_a_500_or_in_text(batch: int) -> None:
    service = Gateway([EchoWorker()], OneTask(), on_unknown=None, timeout_s=30)
    await service.refresh()
    searcher = Searcher(service, Verifiers(NamedVerifiers()), most=4, timeout_s=30)
    app = create_app(service, max_body_bytes=1 << 16, searcher=searcher)
    draw = random.Random(batch)
    found: dict[int, int] = {}
    for number in range(REQUESTS // BATCHES):
        usual = draw.random() < 0.9
        path = draw.choice(PATHS[:3]) if usual else draw.choice(PATHS)
        method = "POST" if usual else draw.choice(METHODS)
        media_type = HEADERS[0] if draw.random() < 0.95 else draw.choice(HEADERS)
        data = body(draw, path, MODEL)
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
