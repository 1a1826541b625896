"""Recognising the task of a prompt, or saying that none is close enough.

Pure and torch-free: the same function freezes the cutoffs offline and decides in the retrieval service, where
the neighbours come from the vector index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from premoe_runtime.formats.arrays import F32, F64
from premoe_runtime.formats.choices import DecisionKind, OnUnknown
from premoe_runtime.formats.pattern_set import Member, PatternSet


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One exemplar near a signature, and its cosine similarity."""

    pattern_id: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Match:
    """One stored task beside the signature: its score and the cutoff at which it would be recognised."""

    pattern_id: str
    task: str
    score: float
    cutoff: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What to run. ``pattern_id`` is empty for full and reject; ``task`` is the nearest one, recognised or not."""

    kind: DecisionKind
    pattern_id: str
    task: str
    score: float
    reason: str
    matches: tuple[Match, ...]
    """Tasks by falling score."""

    @property
    def recognised(self) -> bool:
        return self.kind == "specialist"


def decide(neighbours: Iterable[Neighbour], pattern_set: PatternSet, on_unknown: OnUnknown | None = None) -> Decision:
    """Decide which pattern runs, given the exemplars near a signature.

    ``neighbours`` must hold at least the ``document.neighbours`` nearest exemplars of every task (more do no
    harm); a task that comes with fewer than it has stored is scored as if the missing ones were orthogonal, so
    a short answer from an index can only make it abstain. A task's score is the mean cosine similarity to its
    nearest exemplars; the task with the highest score is recognised if that score reaches its cutoff.
    Otherwise ``on_unknown`` (default: the set's) says what runs; without a generalist in the set that policy
    rejects, because an unknown task must never silently get a specialist.
    """
    similarities: dict[str, list[float]] = {}
    for neighbour in neighbours:
        similarities.setdefault(neighbour.pattern_id, []).append(neighbour.similarity)
    matches = tuple(
        sorted(
            (
                _match(member, similarities.get(member.pattern_id, ()), pattern_set)
                for member in pattern_set.recognisable
            ),
            key=lambda match: (-match.score, match.task),
        )
    )
    if matches and matches[0].score >= matches[0].cutoff:
        best = matches[0]
        reason = f"task {best.task}: score {best.score:.4f} reaches its cutoff {best.cutoff:.4f}"
        return Decision("specialist", best.pattern_id, best.task, best.score, reason, matches)
    return _unknown(matches, pattern_set, on_unknown or pattern_set.document.on_unknown)


def nearest(pattern_set: PatternSet, signature: F32) -> tuple[Neighbour, ...]:
    """The nearest exemplars of every task by brute force: what an index would return for f32[D].

    Raises InvalidInput when the signature does not fit the set.
    """
    query = pattern_set.embed(signature)
    found: list[Neighbour] = []
    for member in pattern_set.recognisable:
        similarities = np.sort(pattern_set.exemplars_of(member) @ query)[::-1][: pattern_set.document.neighbours]
        found.extend(Neighbour(member.pattern_id, float(value)) for value in similarities)
    return tuple(found)


def recognise(pattern_set: PatternSet, signature: F32, on_unknown: OnUnknown | None = None) -> Decision:
    """``decide`` over ``nearest``. Raises InvalidInput when the signature does not fit the set."""
    return decide(nearest(pattern_set, signature), pattern_set, on_unknown)


def task_scores(exemplars: F32, queries: F32, neighbours: int) -> F64:
    """Mean cosine similarity of every query f32[M, D] to its nearest exemplars f32[N, D] of one task: f64[M]."""
    similarities = queries.astype(np.float64) @ exemplars.astype(np.float64).T
    best: F64 = np.sort(similarities, axis=1)[:, -neighbours:]
    return np.asarray(best.mean(axis=1))


def _match(member: Member, similarities: Sequence[float], pattern_set: PatternSet) -> Match:
    wanted = min(pattern_set.document.neighbours, member.exemplars)
    best = sorted(similarities, reverse=True)[:wanted]
    cutoff = member.cutoff if member.cutoff is not None else 1.0
    return Match(member.pattern_id, member.task, sum(best) / wanted, cutoff)


def _unknown(matches: tuple[Match, ...], pattern_set: PatternSet, policy: OnUnknown) -> Decision:
    if matches:
        best = matches[0]
        task, score = best.task, best.score
        why = f"nearest task {task} scores {score:.4f}, below its cutoff {best.cutoff:.4f}"
    else:
        task, score, why = "", 0.0, "the set has no tasks"
    if policy == "generalist":
        generalist_id = pattern_set.generalist_id
        if generalist_id is not None:
            return Decision("generalist", generalist_id, task, score, f"{why}: unknown, so the generalist", matches)
        return Decision("reject", "", task, score, f"{why}: unknown, and the set has no generalist", matches)
    if policy == "full":
        return Decision("full", "", task, score, f"{why}: unknown, so every expert", matches)
    return Decision("reject", "", task, score, f"{why}: unknown, so rejected", matches)
