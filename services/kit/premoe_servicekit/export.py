"""The exporting half of telemetry: only processes with an endpoint import this, and the SDK with it."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from premoe_runtime.formats.errors import InvalidInput

EXPORT_TIMEOUT_S = 2.0
SCHEDULE_DELAY_MS = 1000.0
COOL_DOWN_S = 30.0

log = logging.getLogger(__name__)


def build_provider(service_name: str, endpoint: str, environment: Mapping[str, str]) -> TracerProvider:
    """A provider that exports in the background. Raises InvalidInput for a protocol that we do not have."""
    delay = None if "OTEL_BSP_SCHEDULE_DELAY" in environment else SCHEDULE_DELAY_MS
    exporter = GuardedExporter(_exporter(environment), endpoint)
    provider = TracerProvider(resource=resource(service_name, environment))
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=delay))
    return provider


def resource(service_name: str, environment: Mapping[str, str]) -> Resource:
    """Who we are: service.name, .version and .instance.id, unless the OTEL_* variables say otherwise."""
    try:
        number = version("premoe")
    except PackageNotFoundError:
        number = "unknown"
    own = Resource(
        {
            "service.name": service_name,
            "service.namespace": "premoe",
            "service.version": number,
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    given = Resource.create()
    if not _first(environment, "OTEL_SERVICE_NAME") and "service.name=" not in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        return given.merge(own)
    return own.merge(given)


def _exporter(environment: Mapping[str, str]) -> SpanExporter:
    protocol = (
        _first(environment, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    ).lower()
    timeout = (
        None
        if _first(environment, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
        else EXPORT_TIMEOUT_S
    )
    # Imported here: one of the two is enough.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(timeout=timeout)
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter(timeout=timeout)
    raise InvalidInput(
        f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; use grpc or http/protobuf", reason="TELEMETRY_INVALID"
    )


def _first(environment: Mapping[str, str], *names: str) -> str | None:
    return next((environment[name].strip() for name in names if environment.get(name, "").strip()), None)


class GuardedExporter(SpanExporter):
    """Drops batches untried for a while after a failure, and says so once per outage instead of once per batch."""

    def __init__(self, inner: SpanExporter, endpoint: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._clock = clock
        self._closed_until = float("-inf")
        self._down = False
        # The exporters log every attempt; ours is the one line that people need.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._clock() < self._closed_until:
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._down:
                log.info("trace collector %s answers again", self._endpoint)
            self._down = False
            return result
        self._closed_until = self._clock() + COOL_DOWN_S
        if not self._down:
            log.warning("trace collector %s does not answer; spans are dropped, requests go on", self._endpoint)
        self._down = True
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)
