"""Which experts the stored patterns keep, and how many of them they share, as a document."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import numpy as np

from premoe_gateway.console import masks
from premoe_gateway.domain import StoredPattern, WorkerState
from premoe_gateway.service import Gateway
from premoe_runtime.formats.arrays import F32, Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.ranking import Ranking

Json = dict[str, object]

MOST_PATTERNS = 48
"""Patterns with a picture; more are only counted."""


class Patterns:
    """Those of one model. Worked out anew when the live set or the workers' slots change: a pattern never does."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._made_of: object = None
        self._document: Json = {}

    async def document(self, state: WorkerState) -> Json:
        """The patterns of a worker's weights under its budget, the generalist first, then by task.

        Raises InvalidInput without a retrieval service, Unavailable when it does not answer.
        """
        stored = await self._gateway.patterns(state.weights_id)
        members = sorted(stored, key=lambda each: (not each.generalist, each.task))
        made_of = (members, state.budget, _slots(state), state.allocation, state.experts)
        if made_of != self._made_of:
            rankings = [await self._gateway.ranking(each.pattern_id) for each in members[:MOST_PATTERNS]]
            # In a thread: large sets take a tenth of a second, in which answers stream on.
            self._document = await asyncio.to_thread(_document, state, members, rankings)
            self._made_of = made_of
        return self._document


def overlaps(kept: Sequence[Mask]) -> list[list[float]]:
    """Row i, column j: the share, 0 to 1, of the experts that pattern i keeps which j keeps, too."""
    if not kept:
        return []
    flat = np.stack([mask.ravel() for mask in kept]).astype(np.float32)
    together: F32 = flat @ flat.T
    return [[round(float(value), 4) for value in row] for row in together / np.maximum(1, together.diagonal())[:, None]]


def _document(state: WorkerState, members: Sequence[StoredPattern], rankings: Sequence[Ranking]) -> Json:
    budget, slots, allocation = Budget.parse(state.budget), _slots(state), cast(Allocation, state.allocation)
    kept = [ranking.kept(budget, slots, allocation) for ranking in rankings]
    return {
        "model": state.model,
        "budget": state.budget,
        "layers": len(slots),
        "experts": state.experts,
        "patterns": [_pattern(member, mask) for member, mask in zip(members, kept, strict=False)],
        "overlaps": overlaps(kept),
        "left_out": len(members) - len(kept),
    }


def _slots(state: WorkerState) -> tuple[int, ...]:
    """Of every layer; an older worker says their mean only."""
    return state.layer_slots or (state.slots,) * len(state.residents)


def _pattern(member: StoredPattern, mask: Mask) -> Json:
    kind = "generalist" if member.generalist else "specialist"
    return {"id": member.pattern_id, "task": member.task, "kind": kind, "kept": masks.rows(mask)}
