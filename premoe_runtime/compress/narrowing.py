"""Which neurons of which experts stay, when all that stay get one width: from a worth of every neuron. Pure.

A pack has one width, so a ranking over all layers becomes one ``Shape``: so many experts a layer, so wide. In a shape
an expert is worth its best neurons, and the experts worth the most stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from premoe_runtime.compress.counts import best
from premoe_runtime.compress.plan import Made, Plan
from premoe_runtime.compress.share import Share
from premoe_runtime.formats import allocation
from premoe_runtime.formats.arrays import F64, I64
from premoe_runtime.formats.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Shape:
    """``width`` neurons an expert, ``counts`` experts of every layer; ``total`` of them where layers share."""

    width: int
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Limits:
    """What shapes must keep to: widths are a ``multiple`` (or the old one), layers keep ``least`` experts, and equally
    many of each of the router's ``groups``.
    """

    multiple: int = 1
    least: int = 1
    groups: int = 1


def shapes(experts: Sequence[int], width: int, share: Share, limits: Limits) -> tuple[Shape, ...]:
    """Every shape of at most ``share`` of the neurons of ``experts`` [L] of ``width``, widest first.

    Of each width the most experts that it leaves room for. Narrower ones than all experts need waste bytes and are left
    out. Raises InvalidInput (SHARE_TOO_SMALL): there is none.
    """
    found = list[Shape]()
    for each in (width, *range((width - 1) // limits.multiple * limits.multiple, 0, -limits.multiple)):
        shape = Shape(each, tuple(_count(count, width / each, share, limits) for count in experts))
        if min(shape.counts) >= limits.least:
            found.append(shape)
        if shape.counts == tuple(experts):
            break
    if not found:
        raise InvalidInput(
            f"{share} of the neurons do not make {limits.least} experts a layer of {limits.multiple} neurons; give a "
            "larger --budget or a smaller --multiple",
            reason="SHARE_TOO_SMALL",
        )
    return tuple(found)


def shape_of(experts: Sequence[int], width: int, share: Share, part: Share, limits: Limits) -> Shape:
    """The shape that keeps ``part`` of every layer's experts, as wide as ``share`` pays for.

    Raises InvalidInput (SHARE_TOO_SMALL): too few experts, or too narrow.
    """
    counts = tuple(_count(count, 1.0, part, limits) for count in experts)
    room = share.part * width * sum(experts) / max(sum(counts), 1)
    wide = width if room > width - 1e-6 else math.floor(room / limits.multiple + 1e-9) * limits.multiple
    if min(counts) < limits.least or wide < 1:
        raise InvalidInput(
            f"{share} of the neurons in {part} of the experts are {min(counts)} experts a layer of {math.floor(room)} "
            f"neurons, but {limits.least} experts or more of a multiple of {limits.multiple} are needed; give a larger "
            "--budget, another --experts or a smaller --multiple",
            reason="SHARE_TOO_SMALL",
        )
    return Shape(wide, counts)


def worth(neurons: Sequence[F64], shape: Shape, limits: Limits, *, shared: bool = False) -> float:
    """Σ over what ``narrowed`` keeps of the worth of neurons, f64[E, I] of every layer."""
    kept = _kept(neurons, shape, limits, shared)
    return sum(float(_best(layer, shape.width)[each].sum()) for layer, each in zip(neurons, kept, strict=True))


def narrowed(neurons: Sequence[F64], shape: Shape, limits: Limits, *, shared: bool = False) -> Plan:
    """The plan: the experts worth the most, of each its best neurons, both in their old order.

    ``shared``: the experts are the best of all layers together, ``least`` of each; else ``shape.counts`` of each layer.
    Of equal worth the lower number stays.
    """
    layers = []
    for layer, each in zip(neurons, _kept(neurons, shape, limits, shared), strict=True):
        whole = layer.shape[1] == shape.width
        order = np.argsort(-layer, axis=1, kind="stable")[:, : shape.width]
        layers.append(tuple(Made.kept(one, None if whole else np.sort(order[one])) for one in each.tolist()))
    return Plan(tuple(layers), shape.width)


def _count(count: int, widening: float, share: Share, limits: Limits) -> int:
    """Experts of a layer of ``count`` that ``share`` pays for, when each costs 1 / ``widening`` of an old one."""
    found = math.floor(share.part * count * widening / limits.groups + 1e-9) * limits.groups
    return min(count, found)


def _best(layer: F64, width: int) -> F64:
    """f64[E]: what experts are worth that keep ``width`` neurons."""
    return np.asarray(-np.sort(-layer, axis=1)[:, :width].sum(axis=1))


def _kept(neurons: Sequence[F64], shape: Shape, limits: Limits, shared: bool) -> list[I64]:
    """Experts of every layer, ascending."""
    worths = [_best(layer, shape.width) for layer in neurons]
    counts = shape.counts
    if shared:
        table = np.full((len(worths), max(map(len, worths))), -np.inf)
        for row, values in zip(table, worths, strict=True):
            row[: len(values)] = values
        counts = tuple(allocation.share(table, shape.total, limits.least).tolist())
    return [best(values, count, limits.groups) for values, count in zip(worths, counts, strict=True)]
