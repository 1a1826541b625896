"""From which score on a task is recognised.

A prompt in a new wording is farther from its task than one in a wording that calibration has. So a task's prompts are
put into groups that are alike, and each is scored without its own group, as a new wording would be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from premoe_runtime.formats.arrays import F32, F64, I64
from premoe_runtime.formats.signature import unit

GROUPS = 8
_GROUP_PROMPTS = 5
_ROUNDS = 12
NEAREST_OTHERS = 0.99


def groups_of(vectors: F32) -> I64:
    """i64[N] in 0 … 7: prompts, unit f32[N, D], that are alike have the same number. The same for the same prompts."""
    count = max(1, min(GROUPS, len(vectors) // _GROUP_PROMPTS))
    centres = vectors[:1]
    while len(centres) < count:
        farthest = int((vectors @ centres.T).max(axis=1).argmin())
        centres = np.concatenate([centres, vectors[farthest : farthest + 1]])
    for _ in range(_ROUNDS):
        chosen = (vectors @ centres.T).argmax(axis=1)
        sums = np.stack([vectors[chosen == group].sum(axis=0) for group in range(count)])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1.0), centres).astype(np.float32)
    return np.asarray((vectors @ centres.T).argmax(axis=1), np.int64)


def centre_of(vectors: F32) -> F32:
    """f32[1, D], unit: the direction in which a task's prompts, unit f32[N, D], lie together."""
    return unit(vectors.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32))


def scores_as_new(vectors: F32, stored: I64 | None, neighbours: int) -> F64:
    """f64[N]: the score of each of a task's prompts, unit f32[N, D], without those that are alike.

    ``stored``: which prompts are exemplars; None: the centre of all is the only one, here that of the other groups.
    Where no other group has any exemplar, only the prompt itself is left out; of one group, nothing of its centre.
    """
    groups = groups_of(vectors)
    if stored is None:
        return _scores_of_others(vectors, groups)
    similarities = vectors.astype(np.float64) @ vectors[stored].astype(np.float64).T
    for mine in (groups[:, None] == groups[stored][None, :], np.arange(len(vectors))[:, None] == stored[None, :]):
        allowed = np.where(mine, -np.inf, similarities)
        best = np.sort(allowed, axis=1)[:, -neighbours:]
        if np.isfinite(best).all():
            break
    return np.asarray(np.where(np.isfinite(best), best, 0.0).mean(axis=1))


def _scores_of_others(vectors: F32, groups: I64) -> F64:
    scores = np.zeros(len(vectors))
    for group in np.unique(groups):
        mine = groups == group
        centre = centre_of(vectors if mine.all() else vectors[~mine])
        scores[mine] = (vectors[mine].astype(np.float64) @ centre.astype(np.float64).T)[:, 0]
    return scores


@dataclass(frozen=True, slots=True)
class Tightness:
    """How cutoffs are set, see ``cutoff_of``."""

    quantile: float
    wide_quantile: float
    margin: float


def cutoff_of(own: F64, others: F64, tightness: Tightness) -> float:
    """The score at which a task is recognised, from scores of its own prompts as if new, and of other tasks' prompts.

    Distances d = 1 - score are compared:

    narrow  the nearest other prompts lie beyond the task's own: d = own^(1 - margin) * others^margin, from the
            ``quantile`` of its own and the 1 % nearest others. The wider the gap, the more room for new wordings.
    wide    others come as near as its own: d = the others', but its own ``wide_quantile`` at least.
    """
    inside = _distance(own, tightness.quantile)
    if len(others):
        outside = 1.0 - float(np.quantile(others, NEAREST_OTHERS))
        if outside <= inside:
            return 1.0 - min(inside, max(outside, _distance(own, tightness.wide_quantile)))
        if inside > 0:
            return 1.0 - float(inside ** (1 - tightness.margin) * outside**tightness.margin)
    return 1.0 - inside


def _distance(own: F64, quantile: float) -> float:
    """The distance within which at least ``quantile`` of these prompts lie."""
    return 1.0 - float(np.quantile(own, 1 - quantile, method="lower"))
