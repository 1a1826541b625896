"""What scales must not be: NaN, infinite or zero. Looks at bits, so that bfloat16 needs no torch."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

Data: TypeAlias = bytes | bytearray | memoryview
ZERO = "a scale that is zero"
_BITS = {"F32": ("<u4", 0x7FFF_FFFF, 0x7F80_0000), "F16": ("<u2", 0x7FFF, 0x7C00), "BF16": ("<u2", 0x7FFF, 0x7F80)}
"""Of a dtype: how its bits are read, those of the magnitude, and the least magnitude that is no number."""


def scale_fault(dtype: str, data: Data) -> str:
    """What of these floats is no scale; empty when all are."""
    kind, mask, limit = _BITS[dtype]
    magnitudes = np.frombuffer(data, kind) & mask
    if magnitudes.size and magnitudes.max() >= limit:
        return "a scale that is NaN or infinite"
    return "" if magnitudes.all() else ZERO
