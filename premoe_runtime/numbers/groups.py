"""Groups of input columns that share a scale, in the formats whose weights are integers. Values, no torch."""

from __future__ import annotations

import numpy as np

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.numbers.scales import ZERO, Data, scale_fault

ALL = 0
"""As a group's size: every column."""
SCALES = ("F16", "BF16", "F32")


def groups_text(size: int) -> str:
    return f"groups of {size}" if size else "channels"


def num_groups(columns: int, size: int) -> int:
    """The last one may be smaller."""
    return -(-columns // size) if size else 1


def even_groups(weight: str, columns: int, size: int, title: str) -> int:
    """As many groups as there are when none may be smaller, unless it is the only one."""
    return divided(weight, "columns", columns, min(size or columns, columns), title)


def index_fault(data: Data, size: int) -> str:
    """What of an i32 list is no column's group; empty when all are, or none was ever set."""
    found = np.frombuffer(data, "<i4")
    if (found == -1).all() or not found.size:
        return ""
    groups = num_groups(found.size, size)
    wrong = found[(found < 0) | (found >= groups)]
    return f"group {wrong[0]} for a column, and there are {groups}" if wrong.size else ""


def scales_fault(dtype: str, data: Data) -> str:
    """What of these floats is no scale of a group; empty when all are. Some may be zero, where weights are tiny."""
    fault = scale_fault(dtype, data)
    return "" if fault == ZERO and np.frombuffer(data, np.uint8).any() else fault


def divided(weight: str, what: str, size: int, by: int, title: str) -> int:
    """``size`` / ``by``. Raises InvalidInput (NUMBERS_UNSUPPORTED) where some are left over."""
    whole, left = divmod(size, by)
    if left:
        raise InvalidInput(
            f"{weight} has {size} {what}, which do not make words or groups of {by} for {title}",
            reason="NUMBERS_UNSUPPORTED",
        )
    return whole
