"""Sets of experts as text: one hexadecimal number a layer, of which bit e stands for expert e."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from premoe_runtime.formats.arrays import Mask


def hexadecimal(experts: Iterable[int]) -> str:
    """Those of one layer. Empty slots (-1) stand for nothing."""
    return f"{sum(1 << expert for expert in set(experts) if expert >= 0):x}"


def layers(experts: Sequence[Iterable[int]]) -> list[str]:
    """Those of every layer."""
    return [hexadecimal(layer) for layer in experts]


def rows(mask: Mask) -> list[str]:
    """The same of a mask bool[L, E]."""
    return [hexadecimal(np.flatnonzero(row).tolist()) for row in mask]
