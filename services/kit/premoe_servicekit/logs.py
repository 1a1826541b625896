"""Logs on standard error: one line a record, plain or JSON, with the trace, span and request that they belong to.

log.info("request", extra={"fields": {"status": 200}}) adds fields of its own: keys in JSON, `status=200` for people.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar

from opentelemetry import trace

REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="")
"""Of the request that is being answered; empty outside of one."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
            **_ids(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class PlainFormatter(logging.Formatter):
    """``time level service: message [request_id trace_id]``, for people."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():7} {self._service}: {record.getMessage()}"
        for name, value in _fields(record).items():
            line += f" {name}={value!r}" if isinstance(value, str) else f" {name}={value}"
        ids = _ids()
        if shown := [ids[name] for name in ("request_id", "trace_id") if name in ids]:
            line += f" [{' '.join(shown)}]"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def setup_logging(service: str, *, level: str = "info", log_format: str = "plain") -> None:
    """Send the root logger to standard error. ``log_format`` is "plain" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if log_format == "json" else PlainFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # One line per HTTP request of a client library says nothing that a span does not.
    for noisy in ("httpx", "httpx2", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found = getattr(record, "fields", None)
    return found if isinstance(found, Mapping) else {}


def _ids() -> dict[str, str]:
    request_id = REQUEST_ID.get()
    found = {"request_id": request_id} if request_id else {}
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        found |= {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    return found
