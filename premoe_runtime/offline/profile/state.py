"""The mergeable statistics of a profile.

Every sum is taken over values rounded to multiples of 2⁻²⁴, so float64 adds them without rounding as long as a
sum stays below 2²⁹ in magnitude: the order of batches, the cut into halves and the device cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce

import numpy as np

from premoe_runtime.formats.arrays import F64, I64
from premoe_runtime.formats.errors import InvalidInput

P_BINS = 256
QUANTUM = 2.0**-24


@dataclass(frozen=True, slots=True, eq=False)
class ProfileState:
    """Sums over calibration tokens, per MoE layer (L) and routed expert (E).

    utility    f64[L, E, 256]  Σ f(s) of chosen experts by bin of p, f(s) = max(s, sigmoid(s)) (PreMoE v3, eq. 3)
    chosen     i64[L, E, 256]  tokens that chose the expert, by bin of p
    max_p      f64[L]          Σ max p over the chosen; p is the softmax over the chosen only (eq. 2 and 4)
    soft       f64[L, E]       Σ combine weight as the router gives it (SEER-soft)
    mass       f64[L, E]       Σ full-width router probability
    top_logit  f64[L, E]       Σ raw logit of the single largest logit (TCESS as PreMoE v1 published it, k = 1)
    tokens     i64[L]          tokens seen
    norm       f64[L, E]       Σ combine weight × norm of the expert's output
    impact     f64[L, E]       Σ (change of the answers' margin that going without the expert would bring about)²
    weighed    i64[L]          tokens in ``norm`` and ``impact``: 0 where no gradient was taken
    """

    utility: F64
    chosen: I64
    max_p: F64
    soft: F64
    mass: F64
    top_logit: F64
    tokens: I64
    norm: F64
    impact: F64
    weighed: I64

    @classmethod
    def zeros(cls, num_layers: int, num_experts: int) -> ProfileState:
        shape = (num_layers, num_experts)
        return cls(
            utility=np.zeros((*shape, P_BINS)),
            chosen=np.zeros((*shape, P_BINS), np.int64),
            max_p=np.zeros(num_layers),
            soft=np.zeros(shape),
            mass=np.zeros(shape),
            top_logit=np.zeros(shape),
            tokens=np.zeros(num_layers, np.int64),
            norm=np.zeros(shape),
            impact=np.zeros(shape),
            weighed=np.zeros(num_layers, np.int64),
        )

    @property
    def has_impact(self) -> bool:
        """Whether every token seen was weighed by a gradient."""
        return bool(self.tokens.any() and np.array_equal(self.weighed, self.tokens))

    @property
    def shape(self) -> tuple[int, int]:
        """MoE layers and experts per layer."""
        return int(self.soft.shape[0]), int(self.soft.shape[1])

    def plus(self, other: ProfileState) -> ProfileState:
        """Sum of both. Raises InvalidInput when they belong to models of different shape."""
        if self.shape != other.shape:
            raise InvalidInput(
                f"profiles of {self.shape} and {other.shape} (layers, experts) do not merge",
                reason="PROFILE_MISMATCH",
            )
        return ProfileState(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def pooled(states: Iterable[ProfileState]) -> ProfileState:
    """The sum of parts of one calibration text."""
    return reduce(ProfileState.plus, states)
