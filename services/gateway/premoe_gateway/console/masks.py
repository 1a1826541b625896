"""Sets of experts as text: one hexadecimal number a layer, of which bit e stands for expert e."""

from __future__ import annotations

from collections.abc import Iterable, Set

import numpy as np

from premoe_runtime.formats.arrays import Mask

_bit = (1).__lshift__


def hexadecimal(experts: Set[int]) -> str:
    """Those of one layer."""
    return f"{sum(map(_bit, experts)):x}"


def layers(experts: Iterable[Set[int]]) -> list[str]:
    """Those of every layer."""
    return [hexadecimal(layer) for layer in experts]


def rows(mask: Mask) -> list[str]:
    """The same of a mask bool[L, E]."""
    return layers(frozenset(np.flatnonzero(row).tolist()) for row in mask)
