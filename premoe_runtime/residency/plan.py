"""Planning a swap: a pure decision about what to load where and what gives way for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.formats.ids import ExpertId

EMPTY = -1
"""In a slot table: no expert."""
STAGING_BYTES = 64 << 20
"""The smallest host tier that is made unasked."""
NO_SLOTS: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Load:
    """Bring ``expert`` into ``slot`` of its layer; ``evicts`` is the expert that lies there now, if any."""

    expert: ExpertId
    slot: int
    evicts: ExpertId | None = None

    @property
    def layer(self) -> int:
        return self.expert.layer


def whole_host_bytes(blob_bytes: int, blobs: int) -> int:
    """Bytes of a host tier that holds a blob for each of a worker's slots, so that any pattern is here whole before
    anything gives way for it.
    """
    return max(blobs * blob_bytes, STAGING_BYTES)


def plan_swap(
    needed: AbstractSet[ExpertId],
    table: Sequence[Sequence[int]],
    pinned: AbstractSet[ExpertId],
    recency: Mapping[ExpertId, int],
    *,
    reserved: AbstractSet[tuple[int, int]] = NO_SLOTS,
) -> tuple[Load, ...]:
    """Make every expert of ``needed`` resident with as few copies as possible.

    ``table[layer][slot]`` is the expert that lies there, or ``EMPTY``; layers may differ in slots. ``pinned`` experts
    are never evicted, nor are needed ones; ``recency`` grows with each use (never used: oldest). Free slots are filled
    first, then the least recently used victims give way; ties go to the lower expert id, so equal inputs give equal
    plans. ``reserved`` (layer, slot) pairs belong to a swap under way. Looks only at layers that lack something.
    Raises Exhausted, naming the first layer that cannot hold them.
    """
    loads: list[Load] = []
    for layer in sorted({expert.layer for expert in needed}):
        row = table[layer]
        there = set(row)
        wanted = sorted(e for e in needed if e.layer == layer and e.expert not in there)
        if not wanted:
            continue
        free: list[int] = []
        victims: list[tuple[int, ExpertId, int]] = []
        for slot, held in enumerate(row):
            if (layer, slot) in reserved:
                continue
            occupant = ExpertId(layer, held)
            if held == EMPTY:
                free.append(slot)
            elif occupant not in needed and occupant not in pinned:
                victims.append((recency.get(occupant, -1), occupant, slot))
        room = len(free) + len(victims)
        if len(wanted) > room:
            raise Exhausted(
                f"layer {layer} needs {len(wanted)} more experts, but of its {len(row)} slots only {room} are free: "
                f"{len(row) - room} hold experts in use; wait for running requests, or start the worker with more "
                "slots",
                reason="SLOTS_EXHAUSTED",
            )
        targets: list[tuple[int, ExpertId | None]] = [(slot, None) for slot in free]
        targets += [(slot, occupant) for _, occupant, slot in sorted(victims)]
        loads += [Load(expert, slot, evicts) for expert, (slot, evicts) in zip(wanted, targets, strict=False)]
    return tuple(loads)
