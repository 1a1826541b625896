"""The Range header of RFC 9110, one range of bytes. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

_ONE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE | re.ASCII)


class Span(NamedTuple):
    """Bytes ``[start, end)``; ``partial`` when they were asked for as a range."""

    start: int
    end: int
    partial: bool


class Unsatisfiable(Exception):
    """A range that begins behind the last byte."""


def wanted(header: str | None, num_bytes: int) -> Span:
    """What to send of ``num_bytes``; everything for a header that is none, or of several ranges (RFC 9110, 14.2).

    Raises Unsatisfiable.
    """
    found = _ONE.fullmatch(header or "")
    first, last = found.groups() if found else ("", "")
    if not first and not last:
        return Span(0, num_bytes, partial=False)
    if not first:
        start, end = max(0, num_bytes - int(last)), num_bytes
    else:
        start, end = int(first), min(num_bytes, int(last) + 1) if last else num_bytes
        if last and int(last) < start:
            return Span(0, num_bytes, partial=False)
    if start >= num_bytes or start == end:
        raise Unsatisfiable
    return Span(start, end, partial=True)
