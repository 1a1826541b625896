"""The mergeable statistics of a profile.

Values are rounded to multiples of 2⁻²⁴ (or as a sum says) before they are added up, so float64 adds them without
rounding as long as a sum stays below 2²⁹ in magnitude: the order of batches, the cut into halves and the device cannot
change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, cast

import numpy as np

from premoe_runtime.formats.arrays import F64, I64, Array
from premoe_runtime.formats.errors import InvalidInput

P_BINS = 256

Needs = Literal["router", "outputs", "stream", "gradient", "loss", "weights"]
"""What must be seen to take a sum: what a router gave; what its experts gave; what that did to the layer's output; the
gradient of the answers' margin, or of their cross-entropy, at the routed output; the weights themselves."""

Place = Literal["chosen", "binned", "best", "every", "layer", "vector", "pairs", "words", "fixed"]
"""Where the values of T tokens go, in a table [L, …] of a model of E experts a layer:

chosen  [T, k] into [L, E], each to the expert chosen        binned  the same into [L, E, 256], by bin of p
best    [T, 1] into [L, E], to the expert of the top logit   every   [T, n] into [L, E], summed over tokens
layer   [T] into [L]                                         vector  [T, k, H] into [L, E, H], like chosen
pairs   [T, k, k] into [L, E, E], to both experts            words   ids of tokens, as bits of i64[L, E, ⌈V / 64⌉]
fixed   [n] into [L, E], once: no token has a part in it
"""


@dataclass(frozen=True, slots=True)
class Sum:
    """One statistic: ``take`` gives the values of the tokens of one layer, from one of ``seen``'s classes.

    ``whole``: the values are integers. ``bits``: values are rounded to multiples of 2 to the minus this.
    """

    name: str
    needs: Needs
    place: Place
    take: Callable[[Any], Any]
    whole: bool = False
    bits: int = 24

    @property
    def dtype(self) -> type[np.generic]:
        return np.int64 if self.whole else np.float64

    def fits(self, shape: tuple[int, ...], layers: int, experts: int) -> bool:
        """Whether a table of this shape can hold it."""
        tail: Mapping[Place, tuple[int, ...]] = {"layer": (), "binned": (experts, P_BINS), "pairs": (experts, experts)}
        if self.place in ("vector", "words"):
            return len(shape) == 3 and shape[:2] == (layers, experts) and shape[2] > 0
        return shape == (layers, *tail.get(self.place, (experts,)))

    def joined(self, one: Array, other: Array) -> Array:
        """The table of both parts. Raises InvalidInput where they were taken of models of different shape."""
        if one.shape != other.shape:
            raise InvalidInput(
                f"profiles whose {self.name} are {list(one.shape)} and {list(other.shape)} do not merge",
                reason="PROFILE_MISMATCH",
            )
        if self.place == "words":
            return cast("Array", cast("I64", one) | cast("I64", other))
        if self.place == "fixed":
            return np.where(one != 0, one, other)
        return cast("Array", cast("F64", one) + cast("F64", other))


TOKENS = Sum("tokens", "router", "layer", lambda seen: seen.ones[:, 0], whole=True)
COUNTS = Sum("counts", "router", "chosen", lambda seen: seen.ones, whole=True)
SOFT = Sum("soft", "router", "chosen", lambda seen: seen.weights)
MASS = Sum("mass", "router", "every", lambda seen: seen.probabilities)
BASE = (TOKENS, COUNTS, SOFT, MASS)
"""What every profile has, because patterns need it whatever ranks them: tokens seen, tokens that chose the expert, Σ
combine weight as the router gives it, Σ full-width router probability."""


@dataclass(frozen=True, slots=True, eq=False)
class ProfileState:
    """Sums over calibration tokens, per MoE layer (L) and routed expert (E): ``BASE`` and what scores asked for."""

    sums: Mapping[Sum, Array]

    def __getitem__(self, wanted: Sum) -> F64:
        return cast("F64", self.sums[wanted])

    def __contains__(self, wanted: Sum) -> bool:
        return wanted in self.sums

    @property
    def shape(self) -> tuple[int, int]:
        """MoE layers and experts per layer."""
        layers, experts = self.sums[SOFT].shape
        return int(layers), int(experts)

    def plus(self, other: ProfileState) -> ProfileState:
        """What both have, joined. Raises InvalidInput when they belong to models of different shape."""
        if self.shape != other.shape:
            raise InvalidInput(
                f"profiles of {self.shape} and {other.shape} (layers, experts) do not merge",
                reason="PROFILE_MISMATCH",
            )
        return ProfileState({s: s.joined(table, other.sums[s]) for s, table in self.sums.items() if s in other.sums})

    def followed_by(self, rest: ProfileState) -> ProfileState:
        """Two parts of one measurement: a sum that one of them did not begin with is the other's."""
        both = {**rest.sums, **self.sums}
        return ProfileState({s: self.plus(rest)[s] if s in self and s in rest else table for s, table in both.items()})


def pooled(states: Iterable[ProfileState]) -> ProfileState:
    """The sum of parts of one calibration text."""
    return reduce(ProfileState.plus, states)
