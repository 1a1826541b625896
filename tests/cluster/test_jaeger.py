"""Spans sent with the OpenTelemetry SDK are read back from a real Jaeger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from support.cluster_fixtures import require_programs
from support.jaeger import Jaeger, running_jaeger

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    require_programs("jaeger")
    with running_jaeger(tmp_path_factory.mktemp("jaeger")) as running:
        yield running


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_trace_is_read_back(jaeger: Jaeger, protocol: str) -> None:
    exporter: SpanExporter
    if protocol == "grpc":
        exporter = GrpcExporter(jaeger.otlp_endpoint, insecure=True)
    else:
        exporter = HttpExporter(f"{jaeger.otlp_http_endpoint}/v1/traces")
    resource = Resource({"service.name": f"sender-{protocol}", "k8s.pod.name": "pod-0"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("outer") as outer:
        with tracer.start_as_current_span("inner", attributes={"premoe.experts": 4}):
            pass
    provider.shutdown()
    trace_id = f"{outer.get_span_context().trace_id:032x}"

    first, second = jaeger.wait_for_trace(trace_id, lambda spans: len(spans) == 2)

    assert (first.name, second.name) == ("outer", "inner")
    assert (first.parent_id, second.parent_id) == ("", first.span_id)
    assert second.attributes["premoe.experts"] == 4
    assert second.resource["k8s.pod.name"] == "pod-0"
    assert first.service == f"sender-{protocol}"
    assert f"sender-{protocol}" in jaeger.services()


def test_an_unknown_trace_is_empty(jaeger: Jaeger) -> None:
    assert jaeger.trace("f" * 32) == []
