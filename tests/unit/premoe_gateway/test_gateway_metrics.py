"""What the gateway counts of HTTP requests, and what it tells of its workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from opentelemetry import trace
from premoe_gateway.domain import WorkerState
from premoe_gateway.metrics import GatewayMetrics
from premoe_servicekit.metrics import Metrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from support.metrics import read

SPAN = trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))


async def good(request: Request) -> Response:
    return JSONResponse({})


async def bad(request: Request) -> Response:
    return JSONResponse({}, status_code=429)


async def broken(request: Request) -> Response:
    raise KeyError("nobody expected it")


class Bench:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

        async def stream(request: Request) -> Response:
            async def parts() -> AsyncIterator[str]:
                yield "a"
                self.begun.set()
                await self.go_on.wait()
                yield "b"

            return StreamingResponse(parts())

        handlers = {"/good": good, "/bad": bad, "/broken": broken, "/stream": stream, "/models/{name:path}": good}
        app = Starlette(routes=[Route(path, handler) for path, handler in handlers.items()])
        self.counted = GatewayMetrics(self.metrics, list(handlers))
        transport = httpx.ASGITransport(self.counted.around(app), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://gateway")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.client:
        yield made


async def test_requests_are_counted_by_path_and_code(bench: Bench) -> None:
    for path in ("/good", "/good", "/bad", "/broken", "/models/a", "/models/b/c", *(f"/wp-{n}.php" for n in range(50))):
        await bench.client.get(path)
    found = read(bench.metrics)
    counts = {
        (path, code): found.value("premoe:gateway_requests_total", path=path, code=code)
        for path in found.labels("premoe:gateway_requests_total", "path")
        for code in found.labels("premoe:gateway_requests_total", "code")
    }
    assert {key: count for key, count in counts.items() if count} == {
        ("/good", "200"): 2,
        ("/bad", "429"): 1,
        ("/broken", "500"): 1,
        ("/models/{name:path}", "200"): 2,
        ("other", "404"): 50,
    }
    assert found.value("premoe:gateway_request_seconds_count", path="/good") == 2
    assert found.value("premoe:gateway_requests_in_flight") == 0


async def test_a_stream_is_in_flight_until_its_last_byte_or_until_the_client_leaves(bench: Bench) -> None:
    asked = asyncio.create_task(bench.client.get("/stream"))
    await bench.begun.wait()
    assert read(bench.metrics).value("premoe:gateway_requests_in_flight") == 1
    bench.go_on.set()
    assert (await asked).text == "ab"
    assert read(bench.metrics).value("premoe:gateway_requests_in_flight") == 0
    bench.go_on.clear()
    bench.begun.clear()
    leaving = asyncio.create_task(bench.client.get("/stream"))
    await bench.begun.wait()
    assert read(bench.metrics).value("premoe:gateway_requests_in_flight") == 1
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    found = read(bench.metrics)
    assert found.value("premoe:gateway_requests_in_flight") == 0
    assert found.value("premoe:gateway_requests_total", path="/stream") == 2


async def test_a_traced_request_has_an_exemplar(bench: Bench) -> None:
    with trace.use_span(trace.NonRecordingSpan(SPAN)):
        await bench.client.get("/good")
    (found,) = read(bench.metrics).exemplars("premoe:gateway_request_seconds_bucket")
    assert found.labels["trace_id"] == f"{0xABC:032x}"


class Pool:
    def __init__(self) -> None:
        self.retries = {"probe": 1, "generate": 4}
        self.workers: list[tuple[str, WorkerState | None]] = []

    def known(self) -> list[tuple[str, WorkerState | None]]:
        return self.workers


async def test_workers_show_while_they_are_known(bench: Bench) -> None:
    pool = Pool()
    state = WorkerState("10.0.0.1:1", "chat", "w", 3, 2, 4, (4,), "shared", 8, 256, "2/4")
    pool.workers = [("10.0.0.1:1", state), ("10.0.0.2:1", None)]
    bench.counted.show(pool)
    found = read(bench.metrics)
    assert found.value("premoe:gateway_worker_up", worker="10.0.0.1:1") == 1
    assert found.labels("premoe:gateway_worker_up", "worker") == {"10.0.0.1:1", "10.0.0.2:1"}
    assert found.value("premoe:gateway_worker_running", model_name="chat") == 3
    assert found.value("premoe:gateway_worker_waiting", worker="10.0.0.1:1") == 2
    assert found.value("premoe:gateway_upstream_retries_total", call="generate") == 4
    pool.workers = []
    assert not read(bench.metrics).families["premoe:gateway_worker_up"].samples
