"""What a score is, and the arithmetic that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from premoe_runtime.formats.arrays import F64
from premoe_runtime.offline.profile.state import COUNTS, TOKENS, Needs, ProfileState, Sum

Values = Callable[[ProfileState], F64]


@dataclass(frozen=True, slots=True)
class Score:
    """A score: ``of`` gives f64[L, E] from the ``sums`` of a profile; the highest are kept.

    ``comparable``: values of different layers compare, so budgets may be shared over them; across tasks they count as
    shares of the task's total.
    """

    name: str
    formula: str
    source: str
    sums: tuple[Sum, ...]
    of: Values
    aliases: tuple[str, ...] = ()
    comparable: bool = False

    @property
    def needs(self) -> tuple[Needs, ...]:
        """What must be seen to take its sums, each once; nothing for what ranks without looking."""
        return tuple(dict.fromkeys(each.needs for each in self.sums))


def mean_of(wanted: Sum) -> Values:
    """Mean over all tokens seen; experts not chosen count 0."""
    return lambda state: state[wanted] / state[TOKENS][:, None]


def mean_of_chosen(wanted: Sum) -> Values:
    """Mean over the tokens that chose the expert; 0 for one that none chose."""
    return lambda state: state[wanted] / np.maximum(state[COUNTS], 1)


def apart(total: Sum) -> Values:
    """Minus the sum of cosines between an expert's mean vector and those of its layer's others: alike goes first.

    An expert that no token chose has no mean; it comes last.
    """

    def values(state: ProfileState) -> F64:
        vectors = state[total]
        units = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
        cosines: F64 = np.einsum("lph,lqh->lpq", units, units)
        alike = cosines.sum(axis=-1) - np.diagonal(cosines, axis1=1, axis2=2)
        return np.where(state[COUNTS] > 0, -alike, -float(vectors.shape[1]))

    return values


def entropy(total: Sum, squares: Sum) -> Values:
    """Σ over dimensions of log σ, of the vectors of the tokens that chose the expert (of normals, their entropy).

    σ² is at least what the squares are rounded to, which is what an expert has that none or one chose.
    """

    def values(state: ProfileState) -> F64:
        chosen = np.maximum(state[COUNTS], 1)[..., None]
        variance = state[squares] / chosen - (state[total] / chosen) ** 2
        found: F64 = 0.5 * np.log(np.maximum(variance, 2.0**-squares.bits)).sum(axis=-1)
        return found

    return values
