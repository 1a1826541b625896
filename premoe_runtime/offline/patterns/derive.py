"""Patterns from profiles: one specialist per task, one generalist pooled over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from premoe_runtime.formats.arrays import F64, existing
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.pattern import GENERALIST_TASK, Metric, Pattern, PatternKind
from premoe_runtime.offline.profile.record import Profile, check_same_weights
from premoe_runtime.offline.profile.scores import counts, find, retained_mass, scores


def specialist(profile: Profile, metric: Metric = "peu", *, seed: int = 0) -> Pattern:
    """The profile's own ranking by ``metric``. Raises InvalidInput for a profile of no tokens."""
    return _pattern([profile], profile.task, "specialist", metric, seed)


def generalist(profiles: Sequence[Profile], metric: Metric = "peu", *, seed: int = 0) -> Pattern:
    """The ranking of the tasks' mean score: a task counts once, however long its texts (unlike PreMoE v3, eq. 11).

    Scores of gradients, whose scale differs between tasks, count as shares of the task's total. Raises InvalidInput for
    mixed weights.
    """
    check_same_weights(profiles)
    return _pattern(profiles, GENERALIST_TASK, "generalist", metric, seed)


def mean_retained_mass(pattern: Pattern, profiles: Sequence[Profile], budget: Budget) -> float:
    """Share of the full router's probability that the pattern keeps at ``budget``, averaged over tasks."""
    kept = pattern.kept(budget)
    return float(np.mean([retained_mass(profile.state, kept) for profile in profiles]))


def overlap(patterns: Sequence[Pattern], budget: Budget) -> F64:
    """f64[P, P]: share of the kept experts that two patterns have in common at ``budget``, mean over layers."""
    kept = np.stack([pattern.kept(budget).ravel() for pattern in patterns]).astype(np.float64)
    return np.asarray(kept @ kept.T / kept[0].sum())


def _pattern(profiles: Sequence[Profile], task: str, kind: PatternKind, metric: Metric, seed: int) -> Pattern:
    each = [scores(profile.state, metric, seed=seed) for profile in profiles]
    if find(metric).comparable and len(each) > 1:
        each = [score / max(score.sum(), np.finfo(np.float64).tiny) for score in each]
    return Pattern.from_scores(
        np.where(existing(profiles[0].layer_experts), np.mean(each, axis=0), -np.inf),
        np.mean([scores(profile.state, "seer") for profile in profiles], axis=0),
        np.sum([counts(profile.state) for profile in profiles], axis=0),
        weights_id=profiles[0].weights_id,
        task=task,
        kind=kind,
        metric=metric,
        profiles=[profile.profile_id for profile in profiles],
    )
