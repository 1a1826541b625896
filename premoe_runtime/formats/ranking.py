"""A stored pattern as those have it who read it from the retrieval service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from premoe_runtime.formats.allocation import kept, layer_counts, without
from premoe_runtime.formats.arrays import F64, I64, Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation, Semantics


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """A pattern as retrieval hands it out.

    experts  i64[L, E], most needed first; those that a layer does not have are its last
    scores   f64[L, E] of these, in the same order; -inf for what does not exist
    """

    pattern_id: str
    task: str
    weights_id: str
    semantics: Semantics
    generalist: bool
    experts: I64
    scores: F64
    allocation: Allocation = "uniform"

    def by_expert(self) -> F64:
        """f64[L, E]: the scores by expert id."""
        found = np.empty_like(self.scores)
        np.put_along_axis(found, self.experts, self.scores, axis=1)
        return found

    def without(self, experts: Mask) -> Ranking:
        """The same without these experts, bool[L, E], as if the model did not have them."""
        order = without(self.experts, experts)
        scores = np.where(experts, -np.inf, self.by_expert())
        return replace(self, experts=order, scores=np.take_along_axis(scores, order, axis=1))

    def kept(self, budget: Budget, slots: Sequence[int], allocation: Allocation) -> Mask:
        """bool[L, E]: the best experts within the ``slots`` of every layer, ``budget.kept`` a layer on average.

        Shared over the layers where both the pattern and the worker (``allocation``) are. Raises InvalidInput when the
        slots do not hold them.
        """
        both: Allocation = "shared" if "uniform" not in (allocation, self.allocation) else "uniform"
        return kept(self.experts, layer_counts(self.scores, budget.kept, budget.active, both, slots))
