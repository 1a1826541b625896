"""The ledger: which expert lies in which slot, since when it was used, and what a swap changes. No torch, one owner."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet

from premoe_runtime.formats.errors import Conflict, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.plan import EMPTY, Load, plan_swap

Placement = tuple[ExpertId, int]
"""An expert and the slot of its layer that holds it."""


def slots_of_layers(slots: int | Sequence[int], experts: Sequence[int]) -> tuple[int, ...]:
    """Slots of every MoE layer, at most its ``experts``. Raises InvalidInput: fewer than two, other layers."""
    counts = (slots,) * len(experts) if isinstance(slots, int) else tuple(slots)
    if len(counts) != len(experts):
        raise InvalidInput(
            f"slots are given for {len(counts)} layers, the model has {len(experts)}", reason="SLOTS_SHAPE"
        )
    if min(counts) < 2:
        raise InvalidInput(f"{min(counts)} slots in a layer are too few; give at least 2", reason="SLOTS_TOO_FEW")
    return tuple(map(min, counts, experts))


class Ledger:
    """Decides where experts lie; the slot store beside the engine does what it says.

    ``table[layer][slot]``: the published expert, or ``EMPTY``. A slot between ``retire`` and ``settle`` is *moving*: it
    counts as neither free nor resident. ``experts``: how many every layer has. ``generation`` grows with every settled
    change. ``ranks``: devices that every layer's slots are shared out over (``ranks.share``). Not thread-safe.
    """

    def __init__(
        self,
        slots: Sequence[int],
        experts: Sequence[int],
        table: Iterable[Sequence[int]] | None = None,
        *,
        ranks: int = 1,
    ) -> None:
        self.experts = tuple(experts)
        self._ranks = ranks
        self.table = [list(row) for row in table] if table is not None else [[EMPTY] * count for count in slots]
        self.generation = 0
        self._slot_of = {
            ExpertId(layer, expert): slot
            for layer, row in enumerate(self.table)
            for slot, expert in enumerate(row)
            if expert != EMPTY
        }
        self._moving: dict[tuple[int, int], Load] = {}
        self._recency: dict[ExpertId, int] = {}
        self._clock = 0

    @property
    def slots(self) -> tuple[int, ...]:
        """Slots of every MoE layer."""
        return tuple(len(row) for row in self.table)

    @property
    def num_layers(self) -> int:
        return len(self.table)

    def resident(self) -> frozenset[ExpertId]:
        """Published experts."""
        return frozenset(self._slot_of)

    def lacks(self, experts: Iterable[ExpertId]) -> list[ExpertId]:
        """Those of ``experts`` that are not resident, in their order."""
        return [expert for expert in experts if expert not in self._slot_of]

    def slot(self, expert: ExpertId) -> int:
        """Where a resident expert lies."""
        return self._slot_of[expert]

    def touch(self, experts: Collection[ExpertId]) -> None:
        """Count these experts as used now."""
        self._clock += 1
        self._recency.update(dict.fromkeys(experts, self._clock))

    def plan(self, needed: AbstractSet[ExpertId], pinned: AbstractSet[ExpertId] = frozenset()) -> tuple[Load, ...]:
        """``plan_swap`` over the present table.

        Raises Exhausted; Conflict while another swap brings one of these experts; InvalidInput for an expert that the
        model lacks.
        """
        for expert in needed:
            if not (0 <= expert.layer < self.num_layers and 0 <= expert.expert < self.experts[expert.layer]):
                raise InvalidInput(f"the model has no {expert}", reason="EXPERT_UNKNOWN")
        if arriving := sorted(needed & {load.expert for load in self._moving.values()}):
            raise Conflict(f"another swap is bringing {arriving[0]}; wait for it", reason="EXPERT_ARRIVING")
        return plan_swap(needed, self.table, pinned, self._recency, reserved=self._moving.keys(), ranks=self._ranks)

    def retire(self, loads: Collection[Load], *, in_use: AbstractSet[ExpertId] = frozenset()) -> tuple[ExpertId, ...]:
        """Step one of a swap, for loads whose bytes are ready to be copied; returns the victims, now absent.

        Raises Conflict, changing nothing, when the table has moved on since the plan was made or a victim is
        ``in_use``.
        """
        for load in loads:
            expected = EMPTY if load.evicts is None else load.evicts.expert
            if (load.layer, load.slot) in self._moving:
                raise Conflict(f"another swap has slot {load.slot} of layer {load.layer}", reason="SLOT_RESERVED")
            if self.table[load.layer][load.slot] != expected or load.expert in self._slot_of:
                raise Conflict("the slots changed since this swap was planned; plan it again", reason="PLAN_STALE")
            if load.evicts in in_use:
                raise Conflict(f"{load.evicts} is in use by a running sequence", reason="EXPERT_IN_USE")
        victims = tuple(load.evicts for load in loads if load.evicts is not None)
        for load in loads:
            self._moving[load.layer, load.slot] = load
            self.table[load.layer][load.slot] = EMPTY
        for victim in victims:
            del self._slot_of[victim]
        return victims

    def settle(
        self, loads: Collection[Load], written: AbstractSet[ExpertId], torn: AbstractSet[ExpertId] = frozenset()
    ) -> tuple[Placement, ...]:
        """Step three: what the slots hold now. Returns the placements to publish; the generation grows.

        ``written`` experts arrive; a ``torn`` slot was written in part and is empty; every other slot was not touched,
        so its victim is given back.
        """
        placements: list[Placement] = []
        for load in loads:
            del self._moving[load.layer, load.slot]
            if load.expert in torn:
                continue
            holder = load.expert if load.expert in written else load.evicts
            if holder is not None:
                self.table[load.layer][load.slot] = holder.expert
                self._slot_of[holder] = load.slot
                placements.append((holder, load.slot))
        self.touch([load.expert for load in loads if load.expert in written])
        self.generation += 1
        return tuple(placements)
