"""What another pattern set would have decided on recorded signatures, beside what the live one did: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from premoe_runtime.formats.conversation import recognise_turn
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Decision
from premoe_runtime.formats.signature import Signatures

UNKNOWN = ""
Outcome = Literal["same", "other", "lost", "gained"]
"""The same task or unknown to both; another task; no longer recognised; recognised only by the candidate."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A recorded request. ``task``: the one recognised, or ""; ``score``: of the nearest, recognised or not.

    ``at``: seconds since 1970; ``set_id``: the set that decided.
    """

    at: float
    set_id: str
    signatures: Signatures
    task: str
    nearest: str
    score: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One request, decided anew by the candidate."""

    sample: Sample
    decision: Decision

    @property
    def task(self) -> str:
        """What the candidate recognises, or ""."""
        return self.decision.task if self.decision.recognised else UNKNOWN


@dataclass(slots=True)
class Comparison:
    """Counts over all trials, and the first few of each change."""

    most_examples: int = 3
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By task before and task now; those that stay are among them."""
    sets: Counter[str] = field(default_factory=Counter)
    """By the set that decided."""
    examples: dict[tuple[str, str], list[Trial]] = field(default_factory=dict)

    @property
    def signatures(self) -> int:
        return self.moves.total()

    @property
    def changes(self) -> list[tuple[tuple[str, str], int]]:
        """Moves from one task to another, most frequent first."""
        return [(move, count) for move, count in self.moves.most_common() if move[0] != move[1]]

    def tasks(self) -> Iterator[tuple[str, Counter[Outcome]]]:
        """What became of each task's signatures, the unknown ones last."""
        for task in sorted({before for before, _ in self.moves}, key=lambda task: (task == UNKNOWN, task)):
            found: Counter[Outcome] = Counter()
            for (before, now), count in self.moves.items():
                if before == task:
                    found[outcome_of(before, now)] += count
            yield task, found

    def note(self, trial: Trial) -> None:
        move = (trial.sample.task, trial.task)
        self.moves[move] += 1
        self.outcomes[outcome_of(*move)] += 1
        self.sets[trial.sample.set_id] += 1
        if move[0] != move[1]:
            examples = self.examples.setdefault(move, [])
            if len(examples) < self.most_examples:
                examples.append(trial)


def outcome_of(before: str, now: str) -> Outcome:
    if before == now:
        return "same"
    return "gained" if before == UNKNOWN else "lost" if now == UNKNOWN else "other"


def trials(candidate: PatternSet, samples: Iterable[Sample]) -> Iterator[Trial]:
    """Decide every sample anew. Raises InvalidInput where signatures do not fit the set."""
    for sample in samples:
        yield Trial(sample, recognise_turn(candidate, sample.signatures))


def check_same_signatures(candidate: PatternSet, live: PatternSet) -> None:
    """Raise InvalidInput where the two sets compare different things, however alike in length."""
    ours, theirs = candidate.document.signature, live.document.signature
    if ours != theirs:
        raise InvalidInput(
            f"set {candidate.set_id[:16]} takes other signatures than set {live.set_id[:16]}, which decided: layers "
            f"{list(ours.layers)} with {ours.dimension} values, not {list(theirs.layers)} with {theirs.dimension}; "
            "what was recorded says nothing about it",
            reason="SIGNATURE_INVALID",
        )
