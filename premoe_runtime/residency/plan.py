"""Planning a swap: a pure decision about what to load where and what gives way for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.formats.ids import ExpertId

NO_SLOTS: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Load:
    """Bring ``expert`` into ``slot`` of its ``layer``; ``evicts`` is the expert that lies there now, if any."""

    expert: ExpertId
    layer: int
    slot: int
    evicts: ExpertId | None


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """What a swap will do: a value, carried out later by ``residency.swap``."""

    loads: tuple[Load, ...]
    bytes: int
    """Bytes to be copied to the device."""

    @property
    def blobs(self) -> int:
        return len(self.loads)

    @property
    def victims(self) -> frozenset[ExpertId]:
        return frozenset(load.evicts for load in self.loads if load.evicts is not None)


def plan_swap(
    needed: AbstractSet[ExpertId],
    resident: Mapping[ExpertId, int],
    pinned: AbstractSet[ExpertId],
    slots: Sequence[int],
    recency: Mapping[ExpertId, int],
    *,
    blob_bytes: int = 0,
    reserved: AbstractSet[tuple[int, int]] = NO_SLOTS,
) -> SwapPlan:
    """Make every expert of ``needed`` resident with as few copies as possible.

    ``slots`` counts those of every layer; ``resident`` maps experts to their slot; ``pinned`` ones are never evicted,
    nor are needed ones; ``recency`` grows with each use (never used: oldest). Free slots are filled first, then the
    least recently used victims give way; ties go to the lower expert id, so equal inputs give equal plans.
    ``reserved`` (layer, slot) pairs belong to a swap under way. Raises Exhausted, naming the first layer that cannot
    hold them.
    """
    missing = sorted(set(needed) - resident.keys())
    taken = {(expert.layer, slot): expert for expert, slot in resident.items()}
    loads: list[Load] = []
    for layer in sorted({expert.layer for expert in missing}):
        wanted = [expert for expert in missing if expert.layer == layer]
        usable = [slot for slot in range(slots[layer]) if (layer, slot) not in reserved]
        free = [slot for slot in usable if (layer, slot) not in taken]
        victims = sorted(
            (
                (recency.get(occupant, -1), occupant, slot)
                for slot in usable
                if (occupant := taken.get((layer, slot))) is not None
                and occupant not in needed
                and occupant not in pinned
            ),
        )
        room = len(free) + len(victims)
        if len(wanted) > room:
            raise Exhausted(
                f"layer {layer} needs {len(wanted)} more experts, but of its {slots[layer]} slots only {room} are "
                f"free: {slots[layer] - room} hold experts in use; wait for running requests, or start the worker with "
                "more slots",
                reason="SLOTS_EXHAUSTED",
            )
        targets: list[tuple[int, ExpertId | None]] = [(slot, None) for slot in free]
        targets += [(slot, occupant) for _, occupant, slot in victims]
        loads += [Load(expert, layer, slot, evicts) for expert, (slot, evicts) in zip(wanted, targets, strict=False)]
    return SwapPlan(tuple(loads), len(loads) * blob_bytes)
