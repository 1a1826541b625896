"""Bounds on what patterns keep: experts that always stay, and least and most experts of a layer.

They are put into the scores. Whatever takes the best experts first, a worker with its slots as well as ``share``, then
keeps within them at every budget that allows it, and smaller budgets stay prefixes of larger ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from premoe_runtime.formats.allocation import Floats
from premoe_runtime.formats.arrays import F64, I64, Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern import Pattern, rank

STEP = 2.0**-18
"""Distance of neighbours among raised or lowered scores, as a share of the largest: float32 tells them apart."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """``pinned``: (layer, expert) of those that stay; ``least`` and ``most`` experts of any layer (None: all)."""

    pinned: tuple[tuple[int, int], ...] = ()
    least: int = 0
    most: int | None = None

    @classmethod
    def parse(cls, pins: Sequence[str], least: int = 0, most: int | None = None) -> Bounds:
        """Read pins such as ``0:3,17`` (experts 3 and 17 of MoE layer 0). Raises InvalidInput (PIN_SYNTAX)."""
        pinned = []
        for text in pins:
            layer, _, experts = text.partition(":")
            numbers = [layer, *experts.split(",")]
            if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in numbers):
                raise InvalidInput(
                    f"pin {text[:80]!r} is not of the form LAYER:EXPERT,…, for example 0:3,17", reason="PIN_SYNTAX"
                )
            pinned += [(int(layer), int(expert)) for expert in numbers[1:]]
        return cls(tuple(sorted(set(pinned))), least, most)

    def check(
        self, layer_experts: Sequence[int], budgets: Sequence[Budget] = (), allocation: Allocation = "uniform"
    ) -> None:
        """Raise InvalidInput (BOUNDS_INVALID, BUDGET_INVALID) for what no pattern of this model can keep."""
        experts = np.array(layer_experts)
        for layer, expert in self.pinned:
            if layer >= len(experts) or expert >= experts[layer]:
                there = (
                    f"this layer has {experts[layer]} experts" if layer < len(experts) else f"there are {len(experts)}"
                )
                raise _invalid(f"expert {expert} of MoE layer {layer} cannot be pinned: {there}, counted from 0")
        if self.least > experts.min():
            raise _invalid(f"at least {self.least} experts a layer are asked for, but some layer has {experts.min()}")
        needed, room = self._needed(len(experts)), self._room(experts)
        if (needed > room).any():
            layer = int((needed > room).argmax())
            raise _invalid(
                f"MoE layer {layer} is to keep {needed[layer]} experts at least (pinned, or as the least a layer) and "
                f"{room[layer]} at most"
            )
        for budget in budgets:
            self._check_budget(budget, experts, np.maximum(needed, budget.active), room, allocation)

    def allows(self, budget: Budget, layer_experts: Sequence[int], allocation: Allocation) -> bool:
        """Whether patterns can keep within the bounds at this budget."""
        try:
            self.check(layer_experts, [budget], allocation)
        except InvalidInput:
            return False
        return True

    def applied(self, pattern: Pattern) -> Pattern:
        """The pattern with scores and ranking that keep the bounds."""
        if self == Bounds():
            return pattern
        scores = bounded(pattern.scores, self).astype(np.float32)
        return replace(pattern, scores=scores, ranking=rank(scores, pattern.tiebreak, pattern.counts))

    def _check_budget(self, budget: Budget, experts: I64, needed: I64, room: I64, allocation: Allocation) -> None:
        if allocation == "shared":
            total = min(budget.kept * len(experts), int(experts.sum()))
            low, high, what = int(needed.sum()), int(room.sum()), f"{total} experts in all"
        else:
            total = budget.kept
            low, high = int(needed.max()), int(np.where(room < experts, room, max(total, int(needed.max()))).min())
            what = f"{total} experts a layer"
        if not low <= total <= high:
            raise InvalidInput(
                f"budget {budget} keeps {what}, but the bounds ask for {low} to {high}; "
                f"give another budget, or other bounds (--pin, --least, --most)",
                reason="BUDGET_INVALID",
            )

    def _needed(self, layers: int) -> I64:
        pins = np.bincount([layer for layer, _ in self.pinned], minlength=layers)
        return np.maximum(pins, self.least).astype(np.int64)

    def _room(self, experts: I64) -> I64:
        return experts if self.most is None else np.minimum(experts, self.most)


def bounded(scores: Floats, bounds: Bounds) -> F64:
    """f64[L, E]: the scores, those that must stay raised above all others, those that must not lowered below them.

    Pinned experts come before the best ``least`` of their layer, those before all others, and what exceeds ``most`` of
    a layer comes last; the order inside each of these is that of the scores.
    """
    values = np.array(scores, np.float64)
    exists = values > -np.inf
    pinned = np.zeros(values.shape, np.bool_)
    for layer, expert in bounds.pinned:
        pinned[layer, expert] = True
    order = np.lexsort((-values, ~pinned), axis=-1)
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(values.shape[1])[None, :], axis=1)
    raised = exists & (pinned | (places < bounds.least))
    lowered = exists & ~raised & (places >= (values.shape[1] if bounds.most is None else bounds.most))
    high, low = values[exists].max(), values[exists].min()
    step = (max(abs(high), abs(low)) or 1.0) * STEP
    kept = values.copy()
    kept[raised] = high + step * (1 + _ranks(values[raised], pinned[raised]))
    kept[lowered] = low - step * (1 + _ranks(-values[lowered], np.zeros(int(lowered.sum()), np.bool_)))
    return kept


def _ranks(values: F64, first: Mask) -> I64:
    """Places of values from the smallest on, those that are ``first`` after the others; equal ones share theirs."""
    pairs = np.stack([first.astype(np.float64), values], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(message, reason="BOUNDS_INVALID")
