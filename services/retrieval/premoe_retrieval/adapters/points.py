"""What the two forms of Qdrant share: names of collections, ids of points, and the span of a call."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import SpanKind
from premoe_servicekit.telemetry import tracer

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.pattern_set import Member, PatternSet

PREFIX = "premoe-signatures-"
_POINTS = uuid.UUID("7a2f3f4e-0f7e-5b0e-9f52-5b7f2c3a9d10")


def collection_of(dimension: int) -> str:
    """One collection per length of a signature."""
    return f"{PREFIX}{dimension}"


def exemplars(set_id: str, pattern_set: PatternSet) -> Iterator[tuple[uuid.UUID, Member, F32]]:
    """Id, pattern and vector of every exemplar. Ids are functions of set and row: publishing again overwrites."""
    for member in pattern_set.specialists:
        for row, vector in enumerate(pattern_set.exemplars_of(member), start=member.first_exemplar):
            yield uuid.uuid5(_POINTS, f"{set_id}/{row}"), member, vector


@contextmanager
def index_span(operation: str, collection: str) -> Iterator[None]:
    """The span of one call to the index."""
    attributes = {"db.system.name": "qdrant", "db.collection.name": collection, "db.operation.name": operation}
    with tracer().start_as_current_span(f"qdrant {operation}", kind=SpanKind.CLIENT, attributes=attributes):
        yield
