"""What is kept under one rule, a score and an allocation: each task's specialist, and what stands in for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from premoe_runtime.formats.allocation import Splits
from premoe_runtime.formats.arrays import existing
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS, Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.pattern import Metric, Pattern
from premoe_runtime.offline.patterns.derive import generalist, specialist
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.offline.profile.scores import random_scores


@dataclass(frozen=True, slots=True)
class Patterns:
    """What an evaluation compares under one rule: a specialist per task, and the two that stand in for them.

    ``splits`` are those of a set that shares its budgets over the layers: a worker with ``spare`` slots a layer serves
    its tasks within one split.
    """

    specialists: Mapping[str, Pattern]
    generalist: Pattern | None
    random: Pattern | None
    splits: Splits | None = None
    spare: int = DEFAULT_SPARE_SLOTS

    @classmethod
    def by_rule(
        cls,
        profiles: Sequence[Profile],
        metric: Metric,
        allocation: Allocation,
        *,
        seed: int = 0,
        spare: int = DEFAULT_SPARE_SLOTS,
    ) -> Patterns:
        """Of one profile a task, by one metric. Raises InvalidInput where the profiles cannot tell it."""
        *each, pool = (
            replace(pattern, allocation=allocation)
            for pattern in (
                *(specialist(profile, metric, seed=seed) for profile in profiles),
                generalist(profiles, metric, seed=seed),
            )
        )
        shared = allocation == "shared"
        splits = Splits.of([pattern.scores for pattern in each], profiles[0].top_k) if shared else None
        return cls({pattern.task: pattern for pattern in each}, pool, None, splits, spare)

    def slots(self, budget: Budget) -> tuple[int, ...] | None:
        """Slots of every layer of a worker that serves all tasks at ``budget``; None: equally many."""
        return None if self.splits is None else self.splits.layer_slots(budget.kept, self.spare)


def random_pattern(like: Pattern, seed: int = 0) -> Pattern:
    """A pattern that keeps as many experts of the same model, at random."""
    zeros = np.zeros(like.scores.shape)
    return Pattern.from_scores(
        np.where(existing(like.layer_experts), random_scores((like.num_layers, like.num_experts), seed), -np.inf),
        zeros,
        zeros.astype(np.int64),
        weights_id=like.weights_id,
        task="random",
        kind="specialist",
        metric="random",
        profiles=(),
    )
