"""Range reads as values: which bytes of which object go where. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

MAX_READ_BYTES = 8 << 20
"""Longest range asked of object storage at once."""

T = TypeVar("T")


class Missing(NamedTuple):
    """Bytes wanted: where they lie in an object, and the writable memory for them."""

    path: str
    offset: int
    into: memoryview


@dataclass(frozen=True, slots=True)
class Read:
    """One range request; its bytes fill ``views`` one after another."""

    path: str
    offset: int
    views: tuple[memoryview, ...]

    @property
    def num_bytes(self) -> int:
        return sum(len(view) for view in self.views)


def plan_reads(missing: Iterable[Missing], limit: int = MAX_READ_BYTES) -> list[Read]:
    """Ranges of at most ``limit`` bytes that cover ``missing``: long ones cut, neighbours joined."""
    reads: list[Read] = []
    for piece in sorted(missing, key=lambda one: (one.path, one.offset)):
        for start in range(0, len(piece.into), limit):
            view = piece.into[start : start + limit]
            offset = piece.offset + start
            last = reads[-1] if reads else None
            if (
                last is not None
                and last.path == piece.path
                and last.offset + last.num_bytes == offset
                and last.num_bytes + len(view) <= limit
            ):
                reads[-1] = Read(last.path, last.offset, (*last.views, view))
            else:
                reads.append(Read(piece.path, offset, (view,)))
    return reads


def windows(items: Sequence[T], item_bytes: int, window_bytes: int) -> list[Sequence[T]]:
    """Cut a sequence into runs of at most ``window_bytes``, at least one item each."""
    count = max(1, window_bytes // item_bytes)
    return [items[start : start + count] for start in range(0, len(items), count)]
