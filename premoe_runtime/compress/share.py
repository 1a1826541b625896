"""How much of the routed experts' bytes a compressed model keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from premoe_runtime.formats.errors import InvalidInput


@dataclass(frozen=True, slots=True, order=True)
class Share:
    """A part of all routed experts' bytes, above 0 and at most 1."""

    part: float

    @classmethod
    def parse(cls, text: str) -> Share:
        """``25%`` or ``0.25``. Raises InvalidInput (SHARE_INVALID)."""
        number = text.strip()
        try:
            part = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
        except ValueError:
            part = math.nan
        if not 0 < part <= 1:
            raise InvalidInput(
                f"{text[:40]!r} is no share of the experts' bytes; give one such as 25% or 0.25",
                reason="SHARE_INVALID",
            )
        return cls(part)

    def of(self, count: int, *, least: int = 1, multiple: int = 1) -> int:
        """The most of ``count`` things that this share pays for, a multiple of ``multiple``, ``least`` at least."""
        # A share such as 1/3 of 96 must not lose a thing to rounding.
        return max(least, math.floor(self.part * count / multiple + 1e-9) * multiple)

    def __str__(self) -> str:
        return f"{100 * self.part:g}%"
