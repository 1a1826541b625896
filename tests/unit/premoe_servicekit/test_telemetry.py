from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode
from premoe_servicekit.export import COOL_DOWN_S, GuardedExporter, resource
from premoe_servicekit.telemetry import end_rpc_span, setup_telemetry

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}


@pytest.mark.parametrize(
    "environment",
    [{}, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}],
    ids=["no endpoint", "disabled", "no exporter"],
)
def test_nothing_is_installed_unless_asked_for(environment: dict[str, str]) -> None:
    before = trace.get_tracer_provider()
    started = setup_telemetry("test", environment)
    assert started.provider is None
    assert trace.get_tracer_provider() is before
    started.shutdown()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "http/json"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, "10s"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, "zstd"),
        ({"OTEL_ATTRIBUTE_COUNT_LIMIT": "abc"}, "OTEL_ATTRIBUTE_COUNT_LIMIT"),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "99999"}, "max_export_batch_size"),
        ({"OTEL_PROPAGATORS": "b3"}, ""),
        ({"OTEL_TRACES_SAMPLER": "nonsense", "OTEL_BSP_MAX_QUEUE_SIZE": "abc"}, ""),
        ({"OTEL_TRACES_EXPORTER": "otlp,console", "OTEL_PYTHON_CONTEXT": "nope"}, ""),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_platform_s_variables_never_end_a_program(wrong: dict[str, str], said: str) -> None:
    """In a process of its own, as the SDK reads its variables when it is imported."""
    code = (
        "import logging; logging.basicConfig()\n"
        "from premoe_servicekit.telemetry import setup_telemetry, tracer\n"
        "started = setup_telemetry('test')\n"
        "with tracer().start_as_current_span('work'): pass\n"
        "started.shutdown(); print('traced' if started.provider else 'untraced')"
    )
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **wrong}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("untraced" if said else "traced")
    if said:
        (line,) = [line for line in done.stderr.splitlines() if "tracing is off" in line]
        assert said in line


def test_the_resource_names_the_process_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resource("premoe-x", {}).attributes["service.name"] == "premoe-x"
    assert {"service.version", "service.instance.id"} <= set(resource("premoe-x", {}).attributes)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=pod-1")
    given = resource("premoe-x", os.environ).attributes
    assert (given["service.name"], given["k8s.pod.name"]) == ("mine", "pod-1")


class Collector(SpanExporter):
    def __init__(self) -> None:
        self.up = False
        self.batches = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.batches += 1
        return SpanExportResult.SUCCESS if self.up else SpanExportResult.FAILURE


def test_a_dead_collector_is_tried_seldom_and_reported_once_per_outage(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    collector = Collector()
    guarded = GuardedExporter(collector, "http://collector:4317", clock=lambda: now)
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            guarded.export([])
        assert collector.batches == 1
        now = COOL_DOWN_S
        guarded.export([])
        assert collector.batches == 2
        collector.up, now = True, 2 * COOL_DOWN_S
        assert [guarded.export([]) for _ in range(3)] == [SpanExportResult.SUCCESS] * 3
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "trace collector http://collector:4317 does not answer",
        "trace collector http://collector:4317 answers again",
    ]


@pytest.mark.parametrize(
    ("code", "server", "failed"),
    [
        (grpc.StatusCode.OK, True, False),
        (grpc.StatusCode.OK, False, False),
        (grpc.StatusCode.NOT_FOUND, True, False),
        (grpc.StatusCode.NOT_FOUND, False, True),
        (grpc.StatusCode.DATA_LOSS, True, True),
        (grpc.StatusCode.CANCELLED, True, False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, True, True),
    ],
)
def test_which_codes_are_errors_depends_on_the_side(code: grpc.StatusCode, server: bool, failed: bool) -> None:
    span = TracerProvider().get_tracer("test").start_span("rpc")
    end_rpc_span(span, code, server=server)
    assert isinstance(span, ReadableSpan)
    assert (span.status.status_code is StatusCode.ERROR) == failed
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == code.name
    assert span.attributes["rpc.grpc.status_code"] == code.value[0]
