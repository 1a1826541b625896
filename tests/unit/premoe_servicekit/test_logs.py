from __future__ import annotations

import json
import logging
import sys

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_trace_id, use_span
from premoe_servicekit.logs import REQUEST_ID, JsonFormatter, PlainFormatter


def record(message: str, *, broken: bool = False) -> logging.LogRecord:
    info = None
    if broken:
        try:
            raise ValueError("inside")
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord("premoe.test", logging.WARNING, __file__, 1, message, (), info)


def test_json_is_one_line_with_the_trace() -> None:
    span = TracerProvider().get_tracer("test").start_span("work")
    with use_span(span):
        line = JsonFormatter("retrieval").format(record("two\nlines", broken=True))
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["service"], entry["message"]) == ("warning", "retrieval", "two\nlines")
    assert entry["trace_id"] == format_trace_id(span.get_span_context().trace_id)
    assert "ValueError: inside" in entry["exception"]


def test_without_a_span_there_is_no_trace_id() -> None:
    assert "trace_id" not in json.loads(JsonFormatter("retrieval").format(record("alone")))
    assert PlainFormatter("retrieval").format(record("alone")).endswith("warning retrieval: alone")


def test_fields_and_the_request_are_part_of_a_line() -> None:
    entry = record("request")
    entry.fields = {"status": 200, "path": "/a\nb"}
    token = REQUEST_ID.set("mine")
    try:
        line = json.loads(JsonFormatter("gateway").format(entry))
        plain = PlainFormatter("gateway").format(entry)
    finally:
        REQUEST_ID.reset(token)
    assert (line["status"], line["path"], line["request_id"]) == (200, "/a\nb", "mine")
    assert plain.endswith("gateway: request status=200 path='/a\\nb' [mine]")
