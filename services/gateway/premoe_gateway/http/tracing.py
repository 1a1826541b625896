"""One server span per HTTP request, continued from the caller's W3C `traceparent`. Bodies are never recorded."""

from __future__ import annotations

from typing import Literal

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from premoe_servicekit.telemetry import PROPAGATOR, tracer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from premoe_gateway.http.paths import is_quiet

_OPERATION = {"chat": "chat", "text": "text_completion"}


class TraceMiddleware:
    """Pure ASGI, so that the span stays open until the last byte of a stream is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_quiet(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"], "url.scheme": scope["scheme"]}
        with tracer().start_as_current_span(
            f"{scope['method']} {scope['path']}",
            context=PROPAGATOR.extract(dict(headers)),
            kind=SpanKind.SERVER,
            attributes=attributes,
        ) as span:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self._app(scope, receive, send_and_note)


def describe(kind: Literal["chat", "text"], model: str, *, stream: bool) -> None:
    """Put the GenAI attributes of the request on the current span (OpenTelemetry GenAI conventions)."""
    span = trace.get_current_span()
    span.set_attribute("gen_ai.operation.name", _OPERATION[kind])
    span.set_attribute("gen_ai.request.model", model)
    span.set_attribute("gen_ai.request.stream", stream)
