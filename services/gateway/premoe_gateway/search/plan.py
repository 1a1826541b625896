"""What a search samples next, when it ends, and which answer wins: pure functions of what has been seen.

After DES (arXiv 2509.22572): answers begin with different numbers of active experts, a verifier scores them, and what
follows inherits the number of those it liked. The paper goes on from unfinished answers (``children``), which takes a
verifier that can judge them; with others whole answers are sampled in rounds (``next_round``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Ended = Literal["answers", "score", "budget", "deadline"]


@dataclass(frozen=True, slots=True)
class Plan:
    """``answers``: most to sample, 1 or more. ``experts``: numbers of active experts to try, all different, at least
    one. ``rounds``: in how many parts they are sampled. ``budget``: tokens of all answers; ``enough``: see ``ended``.
    """

    answers: int
    experts: tuple[int, ...]
    rounds: int = 2
    budget: int | None = None
    enough: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One answer as the plan sees it. ``score``: 0 to 1, None while nobody has judged it; ``votes``: share of the whole
    answers that say the same; ``whole``: it came to its end.
    """

    number: int
    experts: int
    tokens: int = 0
    score: float | None = None
    votes: float = 0.0
    whole: bool = True


def spread(active: int) -> tuple[int, ...]:
    """Numbers to try of a model that runs ``active`` experts per token: it, three quarters and a half of it.

    The paper leaves the list open. Validation prompts of the fixture tell none from another, nor numbers of rounds
    (docs/benchmarks.md), so this is a plain spread. More than the model's own number is never tried: engines activate
    no more.
    """
    return tuple(sorted({active, -(-3 * active // 4), -(-active // 2)}, reverse=True))


def next_round(plan: Plan, trials: Sequence[Trial], played: int) -> tuple[int, ...]:
    """Active experts of each answer to sample now, after ``played`` rounds; empty: the search has ended.

    The first round is even. Later ones are shared by how a number has done so far: in proportion to (sum of its scores
    + 1) / (answers scored + 2), the mean of its chance under a uniform prior, so that none is given up for one failure.
    """
    left = plan.answers - len(trials)
    if played >= plan.rounds or ended(plan, trials) is not None:
        return ()
    size = -(-left // (plan.rounds - played))
    counts = shares({experts: _worth(experts, trials) for experts in plan.experts}, size)
    return tuple(experts for experts in plan.experts for _ in range(counts[experts]))


def children(unfinished: Sequence[Trial], keep: int, answers: int) -> tuple[int, ...]:
    """Numbers of the unfinished answers that go on, one for each of ``answers`` children: the best ``keep``, evenly,
    the better ones first where it does not come out even.
    """
    best = [trial.number for trial in ranked([replace(trial, whole=True) for trial in unfinished])[:keep]]
    # Of equal shares the larger key comes first.
    counts = shares(dict.fromkeys(range(1, len(best) + 1), 1.0), answers) if best else {}
    return tuple(number for place, number in enumerate(best) for _ in range(counts[len(best) - place]))


def shares(weights: Mapping[int, float], size: int) -> dict[int, int]:
    """``size`` answers over numbers of experts in proportion to positive weights, by largest remainders.

    Of equal remainders those of larger weight come first, then those of more experts.
    """
    total = sum(weights.values())
    exact = {experts: size * weight / total for experts, weight in weights.items()}
    counts = {experts: int(share) for experts, share in exact.items()}
    order = sorted(weights, key=lambda experts: (counts[experts] - exact[experts], -weights[experts], -experts))
    for experts in order[: size - sum(counts.values())]:
        counts[experts] += 1
    return counts


def ended(plan: Plan, trials: Sequence[Trial]) -> Ended | None:
    """Why nothing more is to be sampled: a score of ``enough``, the budget is spent, all answers there may be."""
    if plan.enough is not None and any(trial.score is not None and trial.score >= plan.enough for trial in trials):
        return "score"
    if plan.budget is not None and sum(trial.tokens for trial in trials) >= plan.budget:
        return "budget"
    return "answers" if len(trials) >= plan.answers else None


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best first: whole ones, then by score, by votes, by more active experts (the model's own way), by number.

    Who has no score counts as the mean of those that have one, behind any that has as much: a verifier that fell silent
    speaks neither for nor against. Of cut ones the longest comes first.
    """
    scores = [trial.score for trial in trials if trial.score is not None]
    usual = sum(scores) / len(scores) if scores else 0.0

    def place(trial: Trial) -> tuple[bool, float, bool, float, int, int, int]:
        score = usual if trial.score is None else trial.score
        length = 0 if trial.whole else trial.tokens
        return (not trial.whole, -score, trial.score is None, -trial.votes, -length, -trial.experts, trial.number)

    return sorted(trials, key=place)


def _worth(experts: int, trials: Sequence[Trial]) -> float:
    scores = [trial.score for trial in trials if trial.experts == experts and trial.score is not None]
    return (sum(scores) + 1) / (len(scores) + 2)
