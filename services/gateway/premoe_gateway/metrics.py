"""What the gateway counts: HTTP requests from outside, and what it knows of its workers, read when somebody scrapes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from premoe_servicekit.metrics import COUNTER, GAUGE, OTHER, Few, Metric, Metrics, Sample, exemplar
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from premoe_gateway.access.keyring import Keyring
from premoe_gateway.domain import WorkerState
from premoe_gateway.http.calls import Call, call_of

WORKERS = (
    Metric("gateway_worker_up", GAUGE, "1 for a worker that serves, 0 for one that does not answer.", ("worker",)),
    Metric("gateway_worker_running", GAUGE, "Requests that it ran when it was last asked.", ("worker", "model_name")),
    Metric("gateway_worker_waiting", GAUGE, "Requests that waited there.", ("worker", "model_name")),
    Metric(
        "gateway_upstream_retries",
        COUNTER,
        "Calls that were sent to another worker, because one went away or had no room before its first token.",
        ("call",),
    ),
)
KEYS = (
    Metric("gateway_keys", GAUGE, "API keys in force."),
    Metric(
        "gateway_keys_stale",
        GAUGE,
        "1 while the file of API keys cannot be used as it is, so that what it said before holds.",
    ),
)


class Workers(Protocol):
    """What is read of the gateway, from another thread."""

    @property
    def retries(self) -> Mapping[str, int]:
        """Calls sent to another worker, by kind."""
        ...

    def known(self) -> Sequence[tuple[str, WorkerState | None]]:
        """Address and state of every worker; None for one that does not serve."""
        ...


class GatewayMetrics:
    """Wraps the ASGI application: every request, from its first byte to the last of its answer."""

    def __init__(self, metrics: Metrics, paths: Sequence[str]) -> None:
        self._metrics = metrics
        self._paths = frozenset(paths)
        """Templates of what is served. No other path is a label: clients choose those."""
        self._requests = metrics.counter(
            "gateway_requests", "HTTP requests by path and status code; 499: the client left.", ("path", "code")
        )
        self._seconds = metrics.histogram(
            "gateway_request_seconds", "From a request to the last byte of its answer.", ("path",)
        )
        self._of_key = metrics.counter(
            "gateway_key_requests", "HTTP requests by name of the API key and status code.", ("key", "code")
        )
        self._prompt_tokens = metrics.counter(
            "gateway_key_prompt_tokens", "Tokens of prompts by name of the API key.", ("key",)
        )
        self._generation_tokens = metrics.counter(
            "gateway_key_generation_tokens", "Tokens of answers by name of the API key.", ("key",)
        )
        self._key_names = Few()
        self._in_flight = metrics.gauge("gateway_requests_in_flight", "HTTP requests being answered.")

    def show_keys(self, keyring: Keyring | None) -> None:
        """Tell of the API keys from now on; of none where the gateway asks for none."""

        def read() -> Iterator[Sample]:
            if keyring is not None:
                yield "gateway_keys", (), len(keyring.keys)
                yield "gateway_keys_stale", (), float(keyring.is_stale)

        self._metrics.on_demand(KEYS, read)

    def show(self, workers: Workers) -> None:
        """Tell of the workers from now on."""

        def read() -> Iterator[Sample]:
            for address, state in workers.known():
                yield "gateway_worker_up", (address,), float(state is not None)
                if state is not None:
                    yield "gateway_worker_running", (address, state.model), state.running
                    yield "gateway_worker_waiting", (address, state.model), state.waiting
            for call, count in workers.retries.items():
                yield "gateway_upstream_retries", (call,), count

        self._metrics.on_demand(WORKERS, read)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            path = self._template(scope["path"])
            code, found = "499", exemplar()
            began = time.perf_counter()

            async def noting(message: Message) -> None:
                nonlocal code, found
                if message["type"] == "http.response.start":
                    code, found = str(message["status"]), exemplar()
                await send(message)

            with self._in_flight.track_inprogress():
                try:
                    await app(scope, receive, noting)
                except Exception:
                    code = "500"
                    raise
                finally:
                    self._requests.labels(path, code).inc()
                    self._bill(call_of(scope), code)
                    self._seconds.labels(path).observe(time.perf_counter() - began, found)

        return counted

    def _bill(self, call: Call, code: str) -> None:
        if call.key:
            name = self._key_names(call.key)
            self._of_key.labels(name, code).inc()
            self._prompt_tokens.labels(name).inc(call.usage.prompt_tokens)
            self._generation_tokens.labels(name).inc(call.usage.completion_tokens)

    def _template(self, path: str) -> str:
        if path in self._paths:
            return path
        return next((each for each in self._paths if "{" in each and path.startswith(each[: each.index("{")])), OTHER)
