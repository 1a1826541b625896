"""Planning a swap: a pure decision about what to load where and what gives way for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.ranks import ranks_of

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
    ranks: int = 1,
) -> tuple[Load, ...]:
    """Make every expert of ``needed`` resident with as few copies as possible.

    ``table[layer][slot]`` is the expert that lies there, or ``EMPTY``; layers may differ in slots. ``pinned`` experts
    are never evicted, nor are needed ones; ``recency`` grows with each use (never used: oldest). Free slots are filled
    first, then the least recently used victims give way; ties go to the lower expert id, so equal inputs give equal
    plans. ``reserved`` (layer, slot) pairs belong to a swap under way. Of slots that are as good, one on the rank with
    the fewest of ``needed`` is taken, since all ranks wait for the one that computes most. Looks only at layers that
    lack something. Raises Exhausted, naming the first layer that cannot hold them.
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
        targets = [_Target((0, 0), slot, None) for slot in free]
        targets += [_Target((1, used), slot, occupant) for used, occupant, slot in sorted(victims)]
        there_already = [slot for slot, held in enumerate(row) if ExpertId(layer, held) in needed]
        chosen = _spread(targets, len(wanted), ranks_of(len(row), ranks), there_already)
        loads += [Load(expert, target.slot, target.evicts) for expert, target in zip(wanted, chosen, strict=True)]
    return tuple(loads)


class _Target(NamedTuple):
    """A slot that can be filled; ``cost``: those of the smallest go first."""

    cost: tuple[int, int]
    slot: int
    evicts: ExpertId | None


def _spread(targets: list[_Target], count: int, ranks: Sequence[int], taken: Sequence[int]) -> list[_Target]:
    """``count`` of the targets, which are in order of cost; ``ranks``: of every slot; ``taken``: slots in use."""
    if not ranks[-1]:
        return targets[:count]
    load = Counter(ranks[slot] for slot in taken)
    chosen: list[_Target] = []
    for _, equal in groupby(targets, key=lambda target: target.cost):
        left = list(equal)
        while left and len(chosen) < count:
            best = min(left, key=lambda target: load[ranks[target.slot]])
            left.remove(best)
            load[ranks[best.slot]] += 1
            chosen.append(best)
    return chosen
