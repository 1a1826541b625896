"""One span a tier for blobs that are asked for together, however many they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import context
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue
from premoe_servicekit.telemetry import tracer

from premoe_expert_store.filling.landing import Origin

_ATTRIBUTES: dict[Origin, dict[str, AttributeValue]] = {
    "redis": {"db.system.name": "redis", "db.operation.name": "GET"},
}


@dataclass(slots=True)
class Gain:
    """What one blob found in a tier."""

    blobs: int = 0
    num_bytes: int = 0


@dataclass(slots=True)
class _Leg:
    span: Span
    asked: int = 0
    blobs: int = 0
    num_bytes: int = 0
    ended_ns: int = 0


class Trip:
    """Blobs of one request. Spans are children of the span in force when it is made; they end with ``close``."""

    def __init__(self) -> None:
        self._parent = context.get_current()
        self._legs: dict[Origin, _Leg] = {}
        self._inside = 0
        self._closed = False

    @contextmanager
    def asking(self, origin: Origin) -> Iterator[Gain]:
        """One blob asks a tier."""
        leg = self._leg(origin)
        gain = Gain()
        self._inside += 1
        leg.asked += 1
        try:
            yield gain
        finally:
            self._inside -= 1
            leg.blobs += gain.blobs
            leg.num_bytes += gain.num_bytes
            leg.ended_ns = time.time_ns()
            self._end()

    def close(self) -> None:
        """Nothing more is asked for; what is under way still counts."""
        self._closed = True
        self._end()

    def _leg(self, origin: Origin) -> _Leg:
        if origin not in self._legs:
            attributes = {**_ATTRIBUTES.get(origin, {}), "premoe.fetch.source": origin}
            span = tracer().start_span(
                f"fetch {origin}", context=self._parent, kind=SpanKind.CLIENT, attributes=attributes
            )
            self._legs[origin] = _Leg(span)
        return self._legs[origin]

    def _end(self) -> None:
        if not self._closed or self._inside:
            return
        for origin, leg in self._legs.items():
            if origin == "redis":
                leg.span.set_attribute("db.operation.batch.size", leg.asked)
            leg.span.set_attribute("premoe.fetch.blobs", leg.blobs)
            leg.span.set_attribute("premoe.fetch.bytes", leg.num_bytes)
            leg.span.end(leg.ended_ns)
        self._legs.clear()
