"""Which workers a request is sent to, and in which order: a pure function of a snapshot of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BUSIER = 4
"""Sequences by which a worker may have more to do than the idlest one and still be chosen for what it holds."""
STEPS = 8
"""Shares of bytes to move are compared in eighths: a few experts more or less are worth no queue."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker as one request sees it."""

    address: str
    load: int
    """Sequences it has, running or not."""
    answers: bool = True
    """False while it is late with its state, or once it has failed a request, until it has said it."""
    has_room: bool = True
    """False once it has refused a request for want of room, until it is asked for its state again."""
    talked: bool = False
    """Whether it answered this conversation before."""
    recency: int | None = None
    """How many patterns it has run since this one; None: it has not run it lately."""
    missing: float = 0.0
    """Share of the pattern's experts, 0 to 1, that are not resident: what would have to be moved."""
    others: int = 0
    """Patterns that it has run lately: what a new one would displace."""


def rank(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The order in which workers are tried, best first.

    Workers that answer and have room come before those that do not. Of them, none that has clearly more to do than the
    idlest one wins by what it holds. Among the others: who has the conversation, then who ran the pattern last, then
    who has fewest bytes to move, then who has least to do, then who has run fewest other patterns, then the lower
    address.
    """
    known = list(candidates)
    idlest = min((candidate.load for candidate in known if candidate.answers and candidate.has_room), default=0)

    def cost(candidate: Candidate) -> tuple[bool, bool, bool, int, bool, float, int, int, int, str]:
        busy = candidate.load > idlest + BUSIER
        return (
            not candidate.answers,
            not candidate.has_room,
            busy,
            candidate.load if busy else 0,
            not candidate.talked,
            float("inf") if candidate.recency is None else candidate.recency,
            round(candidate.missing * STEPS),
            candidate.load,
            candidate.others,
            candidate.address,
        )

    return sorted(known, key=cost)


def missing_share(ranking: Sequence[Sequence[int]], residents: Sequence[frozenset[int]], kept: Sequence[int]) -> float:
    """Share of a pattern's experts that a worker lacks, 0 to 1.

    ``ranking``: a layer's experts, best first; ``residents``: those in its slots; ``kept``: how many the budget keeps.
    Layers that only one of them knows count as missing.
    """
    wanted = sum(kept)
    found = sum(
        len(resident.intersection(experts[:count]))
        for experts, resident, count in zip(ranking, residents, kept, strict=False)
    )
    return 1.0 - min(1.0, found / wanted) if wanted else 0.0
