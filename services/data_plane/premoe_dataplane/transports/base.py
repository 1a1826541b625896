"""What a fetcher asks of one way to read blobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from premoe_dataplane.plan import BlobPlan, Scheme, Source


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Pieces of a blob that are wanted from one of its sources. ``into`` is room for the whole blob."""

    blob: BlobPlan
    source: Source
    into: memoryview
    pieces: tuple[int, ...]
    """Ascending."""


Landed = Callable[[Part, int], None]
"""Told of each piece after its last byte, by its index. Called from the reading thread; may raise, which ends it."""


class Transport(Protocol):
    """Reads by one scheme. Blocking; safe from several threads, each with parts of its own. Checks no sums."""

    scheme: Scheme

    def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        """Fill the pieces of ``parts``, telling of each; one that never lands is not there.

        No memory is written, nor ``landed`` called, after it has returned or raised. Raises Unavailable when the
        source is down or silent (what has landed stays), and Stopped within a second of ``stopped()`` turning true.
        """
        ...

    def close(self) -> None: ...
