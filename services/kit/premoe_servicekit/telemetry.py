"""Traces: OpenTelemetry by the usual OTEL_* variables, and span helpers for RPCs.

Without an endpoint there is no SDK at all: spans are no-ops, yet incoming W3C context is passed on. A collector that
does not answer costs a request nothing: spans are exported in the background, and after one failure batches are
dropped untried for a while.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from premoe_runtime.formats.errors import InvalidInput, PremoeError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

PROPAGATOR = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
"""W3C context. The API's own choice, by OTEL_PROPAGATORS, raises at import for one that is not installed."""

_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def tracer() -> trace.Tracer:
    """The tracer of every PreMoE span; a no-op until ``setup_telemetry`` found an endpoint."""
    return trace.get_tracer("premoe")


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What ``setup_telemetry`` started. ``provider`` is ``None`` when nothing is exported."""

    provider: TracerProvider | None

    def shutdown(self) -> None:
        """Export what is left (bounded by the export timeout) and stop."""
        if self.provider is not None:
            self.provider.shutdown()


def setup_telemetry(service_name: str, environment: Mapping[str, str] = os.environ) -> Telemetry:
    """Install the tracer provider of this process; call once, at start.

    Honours OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER (otlp, none), OTEL_EXPORTER_OTLP_[TRACES_]{ENDPOINT,PROTOCOL,
    TIMEOUT,HEADERS,…}, OTEL_TRACES_SAMPLER[_ARG], OTEL_BSP_*, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES. Values
    that cannot be honoured leave tracing off, with a warning: a platform sets them for all programs alike.
    """
    try:
        return _set_up(service_name, environment)
    except Exception as error:
        # The SDK and its exporters raise errors of many kinds over their variables.
        reason = str(error) if isinstance(error, PremoeError) else f"the SDK refuses its OTEL_* variables: {error}"
        log.warning("tracing is off: %s", " ".join(reason.split()))
        return Telemetry(None)


def _set_up(service_name: str, environment: Mapping[str, str]) -> Telemetry:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Telemetry(None)
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    endpoint = next((environment[name] for name in endpoints if environment.get(name, "").strip()), None)
    exporters = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if endpoint is None or exporters == "none":
        return Telemetry(None)
    if "otlp" not in [name.strip() for name in exporters.split(",")]:
        raise InvalidInput(f"OTEL_TRACES_EXPORTER is {exporters!r}; use otlp or none", reason="TELEMETRY_INVALID")
    # Imported here: a process that exports nothing should not pay for the SDK at its start.
    from premoe_servicekit.export import build_provider

    provider = build_provider(service_name, endpoint, environment)
    trace.set_tracer_provider(provider)
    return Telemetry(provider)


def start_server_span(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Span:
    """The span of an incoming RPC, child of the caller's W3C context. ``method`` is ``/pkg.Service/Method``.

    The caller's baggage and the span become current for the rest of the RPC's own context.
    """
    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    parent = PROPAGATOR.extract(carrier)
    span = tracer().start_span(
        method.lstrip("/"), context=parent, kind=SpanKind.SERVER, attributes=_rpc_attributes(method)
    )
    # Never detached: gRPC runs every RPC in a context of its own, which ends with it.
    otel_context.attach(trace.set_span_in_context(span, parent))
    return span


def start_client_span(method: str, address: str) -> tuple[Span, list[tuple[str, str]]]:
    """The span of an outgoing RPC, child of the current one, and the metadata that carries it."""
    # A target may carry a resolver's scheme: dns:///name:port.
    host, _, port = address.rpartition("/")[2].rpartition(":")
    attributes: dict[str, str | int] = {**_rpc_attributes(method), "server.address": host or address}
    if port.isdigit():
        attributes["server.port"] = int(port)
    span = tracer().start_span(method.lstrip("/"), kind=SpanKind.CLIENT, attributes=attributes)
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return span, list(carrier.items())


def end_rpc_span(span: Span, code: grpc.StatusCode, *, server: bool, message: str = "") -> None:
    """Note the status and end the span. On servers only faults of the server are errors; on clients all but OK."""
    span.set_attribute("rpc.response.status_code", code.name)
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    failed = code in _SERVER_FAULTS if server else code is not grpc.StatusCode.OK
    if failed:
        span.set_status(Status(StatusCode.ERROR, message or code.name))
    span.end()


def _rpc_attributes(method: str) -> dict[str, str]:
    """Both generations of the RPC conventions; ``rpc.method`` is in both and follows the new one."""
    full = method.lstrip("/")
    return {
        "rpc.system.name": "grpc",
        "rpc.method": full,
        "rpc.system": "grpc",
        "rpc.service": full.rpartition("/")[0],
    }
