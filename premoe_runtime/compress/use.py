"""How much experts are used, task by task."""

from __future__ import annotations

import numpy as np

from premoe_runtime.compress.look import Seen
from premoe_runtime.formats.arrays import F64


class Use:
    """Of one layer's experts: the sums of the router's weights on them, and the tokens of every task."""

    def __init__(self, experts: int, tasks: int) -> None:
        self._weights = np.zeros((tasks, experts))
        self.tokens = np.zeros(tasks)

    def see(self, seen: Seen) -> None:
        experts = self._weights.shape[1]
        for task in sorted(set(seen.tasks.tolist())):
            own = seen.tasks == task
            ids, weights = (part[own].flatten().cpu().numpy() for part in (seen.ids, seen.weights.double()))
            self._weights[task] += np.bincount(ids, weights, experts)[:experts]
            self.tokens[task] += int(own.sum())

    def mean(self) -> F64:
        """f64[E]: weight on an expert a token, the mean over tasks."""
        return np.asarray((self._weights / np.maximum(self.tokens, 1)[:, None]).mean(axis=0), np.float64)
