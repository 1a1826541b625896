"""A tiny OTLP trace receiver (gRPC and HTTP/protobuf on free ports) that shows what processes exported as trees.

with otlp_receiver() as receiver:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    …
    spans = receiver.wait(lambda spans: any(span.name == "decode" for span in spans))
    print(receiver.tree(spans[0].trace_id))
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One exported span; ids are hex, times nanoseconds since 1970, ``kind`` and ``status`` OTLP's numbers."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    status: int
    start: int
    end: int
    attributes: dict[str, Value] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Node:
    """A span and its children by start time. ``str`` draws the tree."""

    span: ReceivedSpan
    children: tuple[Node, ...]

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.walk()

    def names(self) -> list[str]:
        return [node.span.name for node in self.walk()]

    def find(self, name: str) -> Node:
        """The first node of that name, depth first."""
        return next(node for node in self.walk() if node.span.name == name)

    def __str__(self) -> str:
        lines = [f"{self.span.name} [{self.span.service}]"]
        for child in self.children:
            lines += ["  " + line for line in str(child).splitlines()]
        return "\n".join(lines)


class OtlpReceiver:
    """Collects spans of any number of processes. Thread-safe."""

    def __init__(self) -> None:
        self.endpoint = ""
        """For OTEL_EXPORTER_OTLP_PROTOCOL=grpc."""
        self.http_endpoint = ""
        """For http/protobuf."""
        self._spans: list[ReceivedSpan] = []
        self._arrived = threading.Condition()

    def spans(self) -> list[ReceivedSpan]:
        with self._arrived:
            return list(self._spans)

    def clear(self) -> None:
        with self._arrived:
            self._spans.clear()

    def wait(self, complete: Callable[[Sequence[ReceivedSpan]], bool], timeout_s: float = 30.0) -> list[ReceivedSpan]:
        """Wait until the spans so far satisfy ``complete``. Raises TimeoutError with their names."""
        until = time.monotonic() + timeout_s
        with self._arrived:
            while not complete(self._spans):
                if not self._arrived.wait(until - time.monotonic()):
                    raise TimeoutError(f"spans so far: {[span.name for span in self._spans]}")
            return list(self._spans)

    def wait_for_names(self, *names: str, timeout_s: float = 30.0) -> list[ReceivedSpan]:
        """Wait until a span of each name has arrived."""
        return self.wait(lambda spans: set(names) <= {span.name for span in spans}, timeout_s)

    def trace_ids(self) -> list[str]:
        """Traces by the start of their first span."""
        return list(dict.fromkeys(span.trace_id for span in sorted(self.spans(), key=lambda span: span.start)))

    def roots(self, trace_id: str) -> list[Node]:
        """The trees of one trace: more than one when a parent has not arrived (or lives elsewhere)."""
        spans = sorted((one for one in self.spans() if one.trace_id == trace_id), key=lambda one: one.start)
        known = {span.span_id for span in spans}

        def node(span: ReceivedSpan) -> Node:
            return Node(span, tuple(node(one) for one in spans if one.parent_id == span.span_id))

        return [node(span) for span in spans if span.parent_id not in known]

    def tree(self, trace_id: str) -> Node:
        """The one tree of a trace. Raises AssertionError when the trace is in pieces."""
        roots = self.roots(trace_id)
        assert len(roots) == 1, "\n".join(str(root) for root in roots) or f"no trace {trace_id}"
        return roots[0]

    def take(self, request: pb.ExportTraceServiceRequest) -> None:
        found = [
            ReceivedSpan(
                name=span.name,
                service=str(_values(resource.resource.attributes).get("service.name", "")),
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                kind=span.kind,
                status=span.status.code,
                start=span.start_time_unix_nano,
                end=span.end_time_unix_nano,
                attributes=_values(span.attributes),
            )
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._arrived:
            self._spans += found
            self._arrived.notify_all()


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """Receive on free ports until the block ends."""
    receiver = OtlpReceiver()
    threads = ThreadPoolExecutor(4)
    server = grpc.server(threads)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_TraceServicer(receiver), server)  # type: ignore[no-untyped-call]
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(receiver))
    receiver.http_endpoint = f"http://127.0.0.1:{http.server_address[1]}"
    serving = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    server.start()
    serving.start()
    try:
        yield receiver
    finally:
        http.shutdown()
        http.server_close()
        serving.join()
        server.stop(0).wait()
        threads.shutdown()


class _TraceServicer(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(
        self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        self._receiver.take(request)
        return pb.ExportTraceServiceResponse()


def _handler(receiver: OtlpReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.take(pb.ExportTraceServiceRequest.FromString(body))
            answer = pb.ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _values(attributes: Sequence[KeyValue]) -> dict[str, Value]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind in ("string_value", "int_value", "double_value", "bool_value"):
        found: str | int | float | bool = getattr(value, kind)
        return found
    return str(value)
