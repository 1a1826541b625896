"""What a request asks of a search: values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Vote = Literal["text", "number"]


@dataclass(frozen=True, slots=True)
class Exactly:
    """The answer is this text, but for spaces around it."""

    expected: str


@dataclass(frozen=True, slots=True)
class Number:
    """The last number of the answer is this one, as written in decimals."""

    expected: str


@dataclass(frozen=True, slots=True)
class Matching:
    """A regular expression is found in the answer."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Fitting:
    """The answer is JSON that a schema (JSON itself) allows."""

    schema: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A model that the operator has named says how good the answer is."""

    name: str


@dataclass(frozen=True, slots=True)
class Steps:
    """Answers grow by ``tokens`` at a time; the best ``keep`` unfinished ones go on, each with its active experts."""

    tokens: int
    keep: int


Wanted = Exactly | Number | Matching | Fitting | Judged


@dataclass(frozen=True, slots=True)
class SearchOrder:
    """``active_experts``: empty: chosen from the model's own number (``plan.spread``). ``budget``: tokens of all
    answers together. ``enough``: score at which the search ends. ``verifier`` None: the answers vote, by ``vote``.
    """

    active_experts: tuple[int, ...] = ()
    rounds: int = 2
    budget: int | None = None
    enough: float | None = None
    vote: Vote = "text"
    verifier: Wanted | None = None
    require_verified: bool = False
    steps: Steps | None = None
    """None: whole answers are sampled, in rounds."""
