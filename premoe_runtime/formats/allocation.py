"""How a total of experts is shared over the layers: numbers a layer, and the one rule of what a pattern keeps.

``shared`` keeps the best experts of all layers together, after every layer's floor; ``uniform`` keeps equally many a
layer. Both are ``share``: equal scores share evenly. Slots are fixed when a worker starts while tasks share
differently, so a pattern set freezes one split for all its tasks (``one_split``), and spare slots go where single
tasks want more (``spread_spare``). All deterministic.

Layers may have different numbers of experts. Tables of scores are as wide as the widest layer, and -inf stands for what
the others lack; such an entry is never kept, and a total is spent in layers that have experts for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from premoe_runtime.formats.arrays import F64, I16, I64, Mask, existing
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import InvalidInput

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]


def share(scores: Floats, total: int, floor: int, most: Sequence[int] | Integers | None = None) -> I64:
    """Experts a layer, i64[L]: each layer's ``floor`` best, then the best of all layers together up to ``total``.

    ``scores`` [L, E] are comparable between layers. No layer gets more than ``most`` [L] (its slots; by
    default all its experts). Of equal scores the one that ranks higher in its layer comes first, then the lower
    layer. Raises InvalidInput: a total, or a layer of ``most``, that has no room for the floor or for the total.
    """
    caps = _caps(scores, total, floor, most)
    order = _order(scores, floor, caps)[: total - floor * len(caps)]
    return np.asarray(floor + np.bincount(order, minlength=len(caps)), np.int64)


def share_every(scores: Floats, floor: int) -> I64:
    """``share`` for every budget b: row b - 1 of i64[E, L] shares b x L experts or all, at a floor of min(floor, b)."""
    layers, width = scores.shape
    experts = _experts(scores)
    floor = min(floor, int(experts.min()))
    taken = _order(scores, floor, experts)[:, None] == np.arange(layers)
    grown = np.concatenate([np.zeros((1, layers), np.int64), np.cumsum(taken, axis=0)])
    budgets = np.arange(1, width + 1)
    beyond = np.minimum(np.maximum(0, budgets - floor) * layers, len(taken))
    return np.asarray(np.minimum(floor, budgets)[:, None] + grown[beyond], np.int64)


def common(scores: Sequence[Floats]) -> F64:
    """One ranking of layers for several tasks: f64[L, E], each row falling.

    Place j of layer l holds the mean over tasks of the score of the layer's j-th expert, as a share of the task's
    total. Raises InvalidInput without any task.
    """
    if not scores:
        raise InvalidInput("no task to share the layers between", reason="TASKS_MISSING")
    totals = [max(float(each.sum(where=each > -np.inf)), 0.0) or 1.0 for each in scores]
    return np.asarray(np.mean([_falling(each) / total for each, total in zip(scores, totals, strict=True)], axis=0))


def one_split(scores: Sequence[Floats], total: int, floor: int) -> I64:
    """One split of the layers for all tasks, i64[L]: ``share`` of what the next expert gives them on the mean."""
    return share(common(scores), total, floor)


def spread_spare(split: Integers, wants: Integers, spare: int, experts: int | Integers) -> I64:
    """Slots a layer, i64[L]: ``split`` [L] and ``spare`` slots times L, at most its ``experts`` in any layer.

    ``wants`` [L] is the most that any task's own split gives a layer. A spare slot goes to the layer whose slots cover
    the least share of that; once every want is met, to the layer with the fewest spare ones. The sum is that of
    ``even_slots``: split's mean + spare a layer, or all experts.
    """
    layers = len(split)
    slots = np.asarray(split, np.int64).copy()
    experts = np.broadcast_to(experts, (layers,))
    wanted = np.minimum(np.asarray(wants, np.int64), experts)
    for _ in range(min(spare * layers, int((experts - slots).sum()))):
        lacking = wanted > slots
        if lacking.any():
            chosen = np.where(lacking, slots / wanted, np.inf).argmin()
        else:
            chosen = np.where(slots < experts, slots - split, np.inf).argmin()
        slots[chosen] += 1
    return slots


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """How a pattern set shares any budget b over the layers: row b - 1 of both tables, i16[E, L].

    common  one split for all tasks, b x L in all or every expert, which the last row says
    wanted  the most that any task's own split gives each layer
    """

    common: I16
    wanted: I16

    @classmethod
    def of(cls, scores: Sequence[Floats], floor: int) -> Splits:
        """From the scores [L, E] of every task, at ``floor`` experts a layer or more. Raises InvalidInput: no task."""
        shared = share_every(common(scores), floor)
        wanted = np.max([share_every(each, floor) for each in scores], axis=0)
        return cls(shared.astype(np.int16), wanted.astype(np.int16))

    @property
    def num_experts(self) -> int:
        return len(self.common)

    def layer_slots(self, kept: int, spare: int) -> tuple[int, ...]:
        """Slots of every layer for ``kept`` experts and ``spare`` slots a layer on average; all experts at most.

        Raises InvalidInput when the model has fewer experts.
        """
        if not 1 <= kept <= self.num_experts:
            raise InvalidInput(
                f"{kept} experts a layer are to be kept, but the model has {self.num_experts}", reason="BUDGET_INVALID"
            )
        slots = spread_spare(self.common[kept - 1], self.wanted[kept - 1], spare, self.common[-1])
        return tuple(int(count) for count in slots)


def layer_counts(
    scores: Floats, kept: int, floor: int, allocation: Allocation, slots: Sequence[int] | Integers | None = None
) -> I64:
    """What a pattern keeps of every layer, i64[L]: ``kept`` times L in all, within the ``slots`` [L] of each layer.

    Uniform numbers that do not fit into the slots of a layer are made up for by the others, evenly; those that exceed
    its experts are not. Slots of a layer beyond its experts hold none. Raises InvalidInput like ``share``.
    """
    experts = _experts(scores)
    total = kept * len(scores) if allocation == "shared" else int(np.minimum(kept, experts).sum())
    total = min(total, int(experts.sum()))
    if slots is not None and len(slots) == len(experts) and sum(slots) >= total:
        total = min(total, int(np.minimum(experts, slots).sum()))
    return share(scores if allocation == "shared" else _alike(experts), total, floor, slots)


def even_slots(number: int, experts: Sequence[int], allocation: Allocation) -> tuple[int, ...]:
    """Slots of every layer: ``number``, or its ``experts``; where shared, others get what a layer cannot use."""
    return tuple(layer_counts(_alike(experts), number, 0, allocation).tolist())


def kept(ranking: Integers, counts: Sequence[int] | Integers) -> Mask:
    """The kept set, bool[L, E]: the ``counts`` [L] first experts of every layer's ranking, ids [L, E] best first."""
    mask = np.zeros(ranking.shape, np.bool_)
    first = np.arange(ranking.shape[1]) < np.asarray(counts)[:, None]
    np.put_along_axis(mask, np.asarray(ranking, np.intp), first, axis=1)
    return mask


def without(ranking: Integers, experts: Mask) -> I64:
    """The ranking, ids [L, E] best first, with these experts, bool[L, E], behind all others."""
    order = np.argsort(np.take_along_axis(experts, np.asarray(ranking, np.intp), axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(np.asarray(ranking, np.int64), order, axis=1))


def slots_text(slots: Sequence[int]) -> str:
    """``18``; ``34/10/8/12`` where layers differ; ``7 to 34`` where there are many of them."""
    if len(set(slots)) == 1:
        return str(slots[0])
    return "/".join(map(str, slots)) if len(slots) <= 8 else f"{min(slots)} to {max(slots)}"


def _experts(scores: Floats) -> I64:
    return np.asarray((scores > -np.inf).sum(axis=1), np.int64)


def _alike(experts: Sequence[int] | I64) -> F64:
    return np.where(existing(experts), 0.0, -np.inf)


def _falling(scores: Floats) -> F64:
    return -np.sort(-np.asarray(scores, np.float64), axis=1)


def _order(scores: Floats, floor: int, caps: Integers) -> I64:
    """Layers in the order in which they get their next expert, beyond the floor and within ``caps``."""
    best = _falling(scores)
    layers, places = np.nonzero((np.arange(best.shape[1]) >= floor) & (np.arange(best.shape[1]) < caps[:, None]))
    return np.asarray(layers[np.lexsort((layers, places, -best[layers, places]))], np.int64)


def _caps(scores: Floats, total: int, floor: int, most: Sequence[int] | Integers | None) -> I64:
    layers, caps = len(scores), _experts(scores)
    if most is not None:
        caps = np.minimum(caps, most) if len(most) == layers else np.asarray(most)
    if caps.shape != (layers,):
        raise InvalidInput(f"slots for {len(caps)} layers given, the model has {layers}", reason="SLOTS_INVALID")
    if total < floor * layers:
        raise InvalidInput(
            f"{total} experts in {layers} layers leave some layer fewer than the {floor} that every token needs; "
            f"keep {floor} or more a layer",
            reason="BUDGET_INVALID",
        )
    if int(caps.min()) < floor:
        raise InvalidInput(
            f"MoE layer {int(caps.argmin())} has room for {int(caps.min())} experts, but every token needs {floor}; "
            f"give every layer {floor} slots or more",
            reason="SLOTS_TOO_FEW",
        )
    if int(caps.sum()) < total:
        raise InvalidInput(
            f"{total} experts are to be kept in all, but there is room for {int(caps.sum())}; "
            "give more slots or keep fewer experts",
            reason="SLOTS_TOO_FEW",
        )
    return np.asarray(caps, np.int64)
