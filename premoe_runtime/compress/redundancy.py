"""Which experts of a model are told apart least: merged two by two, anywhere, until few enough are left. Pure.

GRAPE's search (arXiv 2604.06542): the pairs of all layers lie in one queue, the pair that differs least is merged, and
a layer whose clusters have become too uneven waits until all layers wait.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from premoe_runtime.formats.arrays import F64

Clusters = tuple[tuple[int, ...], ...]
"""Of a layer's experts, each ascending, in the order of their first members."""
GAMMA = 0.7
"""By accuracy on both test models at 50 and 25 %, of 0, 0.6, 0.7, 0.8, 0.9 and 1. The paper's own was not at hand."""


def merged(
    differences: Sequence[F64], use: Sequence[F64] | None, total: int, least: int, gamma: float
) -> tuple[Clusters, ...]:
    """Clusters of every layer, ``total`` in all and ``least`` or more of each.

    ``differences`` f64[E, E] of every layer, symmetric and comparable between layers; of clusters the mean over pairs.
    ``use`` f64[E] of every layer: merging clusters of use u and v costs u v / (u + v) times their difference, what the
    output moves by; None: the difference itself. A layer waits when the entropy of its clusters' sizes is below
    ``gamma`` times that of all its experts apart; when all wait, all go on, for one merge each. Of equal costs the
    lower layer goes first, then the lower experts.
    """
    layers = [
        _Layer(each, None if use is None else use[number], least, gamma) for number, each in enumerate(differences)
    ]
    waiting = set[int]()
    for _ in range(sum(len(layer.members) for layer in layers) - total):
        able = [number for number, layer in enumerate(layers) if layer.able]
        if not able:
            break
        if waiting.issuperset(able):
            waiting.clear()
        chosen = min((number for number in able if number not in waiting), key=lambda number: layers[number].best[0])
        if layers[chosen].merge():
            waiting.add(chosen)
    return tuple(tuple(sorted(map(tuple, map(sorted, layer.members.values())))) for layer in layers)


class _Layer:
    """The clusters of a layer, by their lowest member."""

    def __init__(self, differences: F64, use: F64 | None, least: int, gamma: float) -> None:
        self._apart = np.array(differences, np.float64)
        self._use = None if use is None else np.array(use, np.float64)
        count = len(self._apart)
        self.members = {expert: [expert] for expert in range(count)}
        self._least, self._enough = least, gamma * np.log(count)
        self._costs = np.full((count, count), np.inf)
        for expert in range(count):
            self._price(expert)
        self._find()

    @property
    def able(self) -> bool:
        return len(self.members) > self._least

    def merge(self) -> bool:
        """Merge the cheapest pair; whether the layer has to wait."""
        _, one, other = self.best
        sizes = len(self.members[one]), len(self.members[other])
        mean = (sizes[0] * self._apart[one] + sizes[1] * self._apart[other]) / sum(sizes)
        self._apart[one], self._apart[:, one] = mean, mean
        self.members[one] += self.members.pop(other)
        if self._use is not None:
            self._use[one] += self._use[other]
        self._costs[other], self._costs[:, other] = np.inf, np.inf
        self._price(one)
        self._find()
        shares = np.array([len(each) for each in self.members.values()]) / len(self._apart)
        return bool(-(shares * np.log(shares)).sum() < self._enough)

    def _price(self, one: int) -> None:
        """What merging ``one`` with others costs; kept above the diagonal."""
        others = np.array([each for each in self.members if each != one], np.int64)
        if not len(others):
            return
        costs = self._apart[one, others]
        if self._use is not None:
            both = self._use[one] + self._use[others]
            costs = costs * self._use[one] * self._use[others] / np.where(both > 0, both, 1.0)
        self._costs[np.minimum(one, others), np.maximum(one, others)] = costs

    def _find(self) -> None:
        one, other = np.unravel_index(int(self._costs.argmin()), self._costs.shape)
        self.best = float(self._costs[one, other]), int(one), int(other)
