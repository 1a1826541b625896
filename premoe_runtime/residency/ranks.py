"""Which slots of a layer lie on which of several devices, each of which is a rank. Pure."""

from __future__ import annotations


def share(slots: int, ranks: int, rank: int) -> range:
    """Slots that lie on a rank: runs of equal length, the first ones longer by one where it does not go up.

    The same as vLLM's "linear" placement of experts, with slots in their place.
    """
    each, longer = divmod(slots, ranks)
    first = rank * each + min(rank, longer)
    return range(first, first + each + (rank < longer))


def ranks_of(slots: int, ranks: int) -> list[int]:
    """Of every slot, the rank that it lies on."""
    return [rank for rank in range(ranks) for _ in share(slots, ranks, rank)]
