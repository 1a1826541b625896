"""Which blobs stay: those used often, lately, and by many live patterns. Pure.

Every use of a blob counts 1 and half of that after each half-life; blobs are compared by the sum. As all sums fade
alike, their order at one time is their order at any other, and a sum is kept as the logarithm that it would have at
time 0. An expert that live patterns hold is worth more by a number of half-lives, so that reading all experts once
flushes none of those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

HALF_LIFE_S = 600.0
PATTERN_HALF_LIVES = 24.0
"""By how much an expert is worth more that every live pattern holds on to: 4 hours."""


UNASKED_HALF_LIVES = 1.0
"""By how much less a blob is worth that nobody waits for: else each prefetch would push out the one before it."""


@dataclass(frozen=True, slots=True)
class Use:
    """How a blob was used: its sum as a logarithm at time 0, and the share of live patterns that want it, 0 to 1."""

    fame: float
    share: float = 0.0

    @classmethod
    def first(cls, now: float, share: float = 0.0) -> Use:
        """Used once, at ``now`` (seconds)."""
        return cls(now / HALF_LIFE_S, share)

    def again(self, now: float) -> Use:
        """Used once more."""
        new = now / HALF_LIFE_S
        least, most = min(self.fame, new), max(self.fame, new)
        return Use(most + math.log2(1.0 + 2.0 ** max(least - most, -1000.0)), self.share)

    @property
    def worth(self) -> float:
        """What blobs are compared by: half-lives."""
        return self.fame + PATTERN_HALF_LIVES * self.share


@dataclass(frozen=True, slots=True)
class Candidate:
    """A blob that could go."""

    digest: str
    num_bytes: int
    worth: float
    leased: bool = False


def victims(candidates: Iterable[Candidate], needed_bytes: int) -> list[str]:
    """Digests to drop for ``needed_bytes``, least worth first and leased ones last; all, where that is not enough."""
    chosen: list[str] = []
    for one in sorted(candidates, key=lambda one: (one.leased, one.worth)):
        if needed_bytes <= 0:
            break
        chosen.append(one.digest)
        needed_bytes -= one.num_bytes
    return chosen


def room_below(candidates: Iterable[Candidate], worth: float) -> int:
    """Bytes that a blob of ``worth``, for which nobody waits, may take: those of blobs worth less and not leased."""
    most = worth - UNASKED_HALF_LIVES
    return sum(one.num_bytes for one in candidates if not one.leased and one.worth < most)
