"""Which experts are a task's own, by what the patterns of a set say, so that a task can be masked out on purpose.

The idea is Monet's (arXiv 2412.04139, section 5): an expert belongs to a domain when it serves that domain so much more
than any other, and a domain is removed by zeroing its experts. There routing probabilities say so, here the score that
the patterns rank by, as shares: of what a task scores in all, the part that is the expert's, over that of a mean one.

    own(D) = { e : max over d in D of share_d(e) > FACTOR x other(e),  other(e) <= MOST }
    other(e) = max over t not in D of share_t(e)

The paper leaves the threshold open. Both were chosen on validation prompts of both fixtures, from FACTOR 0.5 to 8 and
MOST 0.25 to 8 and none (docs/deny.md): of the rules under which other tasks lose less than a point of exact match on
the mean, and none more than 15, this one leaves least of the denied task. A factor alone gives a task an expert that
another one needs a third as much, and needs badly; a bound alone takes what no task needs more than others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from premoe_runtime.formats.allocation import Floats
from premoe_runtime.formats.arrays import F64, Mask
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import RouterSpec

FACTOR = 3.0
"""How many times the largest share of any other task an expert's share of the denied task exceeds."""
MOST = 4.0
"""Largest share of any other task that a denied expert has; 1 is that of a mean expert."""
_SHOWN = 20
"""Tasks named in a message."""


@dataclass(frozen=True, eq=False)
class Domains:
    """The tasks of a set as they compete for experts. What is worked out of the scores is worked out once.

    scores  by task, [L, E]: what its pattern ranks by; -inf for experts that a layer does not have
    groups  of neighbours that the router chooses among; every one keeps ``least`` of its experts, whoever is denied
    shared  whether scores compare between layers; else every layer counts alike
    """

    scores: Mapping[str, Floats]
    least: int
    groups: int = 1
    shared: bool = True

    @classmethod
    def of(cls, scores: Mapping[str, Floats], router: RouterSpec, top_k: int, *, shared: bool) -> Domains:
        """``least``: such that a token finds its ``top_k`` experts in whichever groups its router chooses."""
        return cls(scores, -(-top_k // router.chosen_groups), router.groups, shared)

    def own(self, tasks: Collection[str], *, factor: float = FACTOR, most: float = MOST) -> Mask:
        """bool[L, E]: the experts of these tasks and of no other; ``factor`` and ``most`` as in the module's rule.

        Of a group that would keep too few, those stay that others need most. Raises InvalidInput: a task that is not
        in the set, all of them (there is no other to tell them from), or one that no expert is the own of.
        """
        self._check(tasks)
        shares = self._shares
        others = np.max([each for task, each in shares.items() if task not in tasks], axis=0)
        found = np.zeros(others.shape, np.bool_)
        for task in sorted(tasks):
            mine = (shares[task] > factor * others) & (others <= most)
            if not mine.any():
                raise InvalidInput(
                    f"deny: no expert is {task!r}'s own, other tasks use all that it does; it cannot be denied alone",
                    reason="DENY_INVALID",
                )
            found |= mine
        ours = np.max([shares[task] for task in sorted(tasks)], axis=0)
        return found & ~self._staying(found, ours, others)

    @cached_property
    def _shares(self) -> dict[str, F64]:
        return {task: share(each, shared=self.shared) for task, each in self.scores.items()}

    def _staying(self, found: Mask, ours: F64, others: F64) -> Mask:
        """bool[L, E]: in every group of every layer the ``least`` experts that belong to the denied tasks least."""
        lead = np.full(found.shape, np.inf)
        np.divide(ours, others, out=lead, where=others > 0)
        exists = next(iter(self.scores.values())) > -np.inf
        keys = [each.reshape(len(found), self.groups, -1) for each in (lead, found, ~exists)]
        places = np.argsort(np.lexsort(keys, axis=-1), axis=-1)
        return np.asarray((places < self.least).reshape(found.shape))

    def _check(self, tasks: Collection[str]) -> None:
        known = sorted(self.scores)
        for task in tasks:
            if task not in self.scores:
                listed = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
                raise InvalidInput(
                    f"deny: the live pattern set has no task {task[:80]!r}; it has {listed or 'none'}",
                    reason="DENY_INVALID",
                )
        if len(set(tasks)) == len(known):
            raise InvalidInput(
                "deny: these are all tasks of the live pattern set; there is no other to tell their experts from",
                reason="DENY_INVALID",
            )


def share(scores: Floats, *, shared: bool = True) -> F64:
    """f64[L, E]: each expert's score over the mean of all, or of its layer's; 0 where there is none.

    What counts less than nothing counts nothing.
    """
    values, exists = np.maximum(np.asarray(scores, np.float64), 0.0), scores > -np.inf
    axis = None if shared else 1
    means = np.broadcast_to(values.sum(axis, keepdims=True) / exists.sum(axis, keepdims=True).clip(1), values.shape)
    found = np.zeros_like(values)
    np.divide(values, means, out=found, where=means > 0)
    return found
