"""How well a set would tell its tasks apart, and the space of signatures in which it does.

Measured on calibration prompts alone, the tasks that somebody has: prompts are scored as if their wording were new, and
each task is left out once, to see how its prompts are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from premoe_runtime.formats.arrays import F32, F64, I64
from premoe_runtime.formats.recognition import task_scores
from premoe_runtime.formats.space import Space
from premoe_runtime.offline.patterns.cutoffs import Tightness, centre_of, cutoff_of, scores_as_new

SHRINKAGE = 0.3
"""How much of the spread within tasks counts as equal in all directions."""
WIDEST = 2048
"""Longest signatures that get a space: its axes have that to the square of values."""
LEFT_OUT = 16
"""Most tasks for which cutoffs are set anew without each of them; one of many hardly moves them."""


@dataclass(frozen=True, slots=True, eq=False)
class TaskVectors:
    """One task's signatures, unit f32[N, D], and which of them, i64[n], become exemplars; None: their centre does."""

    vectors: F32
    stored: I64 | None = None

    @property
    def exemplars(self) -> F32:
        return centre_of(self.vectors) if self.stored is None else self.vectors[self.stored]

    @property
    def held_out(self) -> int:
        """Prompts that are no exemplars."""
        return len(self.vectors) - (0 if self.stored is None else len(self.stored))


@dataclass(frozen=True, slots=True)
class Telling:
    """Cutoffs of tasks, in their order, and shares, 0 to 1, means over tasks.

    recognised  of prompts in wordings as if new that get their own task
    abstained   of prompts of a task left out that get none; 1 where there is one task only
    """

    cutoffs: tuple[float, ...]
    recognised: float
    abstained: float


def tell(tasks: Sequence[TaskVectors], neighbours: int, tightness: Tightness) -> Telling:
    """Cutoffs, and how well they do."""
    own = [scores_as_new(task.vectors, task.stored, neighbours) for task in tasks]
    exemplars = [task.exemplars for task in tasks]
    # scores[i][j]: of task j's prompts on task i
    scores = [
        [own[i] if i == j else task_scores(mine, other.vectors, neighbours) for j, other in enumerate(tasks)]
        for i, mine in enumerate(exemplars)
    ]
    every = range(len(tasks))
    cutoffs = [_cutoff(scores, i, every, tightness) for i in every]
    recognised = [float(np.mean(_accepted(scores, every, cutoffs, j) == j)) for j in every]
    abstained = []
    for j in every if len(tasks) > 1 else ():
        others = [i for i in every if i != j]
        without = [_cutoff(scores, i, others, tightness) for i in others] if len(tasks) <= LEFT_OUT else None
        limits = cutoffs if without is None else [*without[:j], np.inf, *without[j:]]
        abstained.append(float(np.mean(_accepted(scores, others, limits, j) < 0)))
    return Telling(tuple(cutoffs), float(np.mean(recognised)), float(np.mean(abstained or [1.0])))


def space_for(tasks: Sequence[F32]) -> Space | None:
    """The space in which tasks, unit f32[N, D] each, spread nearly equally in all directions, seen from their mean.

    None where there is one task, which its own mean would hide, and where signatures are too long.
    """
    if len(tasks) < 2 or tasks[0].shape[1] > WIDEST:
        return None
    centre = np.concatenate(tasks).astype(np.float64).mean(axis=0)
    within = np.concatenate([task - task.mean(axis=0, dtype=np.float64) for task in tasks])
    covariance = within.T @ within / len(within)
    size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    spread = (1 - SHRINKAGE) * covariance + SHRINKAGE * size * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(spread)
    return Space(centre.astype(np.float32), (vectors / np.sqrt(values / size) @ vectors.T).astype(np.float32))


def _cutoff(scores: Sequence[Sequence[F64]], i: int, among: Sequence[int], tightness: Tightness) -> float:
    others = [scores[i][j] for j in among if j != i]
    return cutoff_of(scores[i][i], np.concatenate([np.zeros(0), *others]), tightness)


def _accepted(scores: Sequence[Sequence[F64]], among: Sequence[int], cutoffs: Sequence[float], j: int) -> I64:
    """i64[N]: the task that each prompt of task j gets among some, -1 for none."""
    table = np.stack([scores[i][j] for i in among])
    best = table.argmax(axis=0)
    reached = table.max(axis=0) >= np.array([cutoffs[i] for i in among])[best]
    return np.where(reached, np.array(among)[best], -1)
