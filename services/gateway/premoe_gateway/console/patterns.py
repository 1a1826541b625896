"""Which experts the stored patterns keep, and how many of them they share, as a document."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import numpy as np

from premoe_gateway.console import masks
from premoe_gateway.domain import StoredPattern, WorkerState
from premoe_gateway.service import Gateway
from premoe_runtime.formats.arrays import F32, Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation

Json = dict[str, object]

MOST_PATTERNS = 48
"""Patterns with a picture; more are only counted."""
_REMEMBERED = 8 * MOST_PATTERNS


class Patterns:
    """Reads the live set; remembers what its patterns keep, for a pattern never changes under its id."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._kept: OrderedDict[tuple[object, ...], Mask] = OrderedDict()

    async def document(self, state: WorkerState) -> Json:
        """The patterns of a worker's weights under its budget, the generalist first, then by task.

        Raises InvalidInput without a retrieval service, Unavailable when it does not answer.
        """
        members = sorted(
            await self._gateway.patterns(state.weights_id), key=lambda each: (not each.generalist, each.task)
        )
        shown = members[:MOST_PATTERNS]
        kept = [await self._mask(member.pattern_id, state) for member in shown]
        return {
            "model": state.model,
            "budget": state.budget,
            "layers": kept[0].shape[0] if kept else 0,
            "experts": state.experts,
            "patterns": [_pattern(member, mask) for member, mask in zip(shown, kept, strict=True)],
            "overlaps": overlaps(kept),
            "left_out": len(members) - len(shown),
        }

    async def _mask(self, pattern_id: str, state: WorkerState) -> Mask:
        """bool[L, E]: what the worker keeps for a pattern."""
        slots = state.layer_slots or (state.slots,) * len(state.residents)
        key = (pattern_id, state.budget, slots, state.allocation)
        if key not in self._kept:
            ranking = await self._gateway.ranking(pattern_id)
            self._kept[key] = ranking.kept(Budget.parse(state.budget), slots, cast(Allocation, state.allocation))
            if len(self._kept) > _REMEMBERED:
                self._kept.popitem(last=False)
        return self._kept[key]


def overlaps(kept: Sequence[Mask]) -> list[list[float]]:
    """Row i, column j: the share, 0 to 1, of the experts that pattern i keeps which j keeps, too."""
    if not kept:
        return []
    flat = np.stack([mask.ravel() for mask in kept]).astype(np.float32)
    together: F32 = flat @ flat.T
    return [[round(float(value), 4) for value in row] for row in together / np.maximum(1, together.diagonal())[:, None]]


def _pattern(member: StoredPattern, mask: Mask) -> Json:
    kind = "generalist" if member.generalist else "specialist"
    return {"id": member.pattern_id, "task": member.task, "kind": kind, "kept": masks.rows(mask)}
