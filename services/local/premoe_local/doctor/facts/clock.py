"""How far another machine's clock is from ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds that the other clock is ahead of ours, give or take ``uncertainty``."""

    ahead: float
    uncertainty: float

    @classmethod
    def read(cls, before: float, told: float, after: float, resolution: float = 0.0) -> Clock:
        """``told`` was asked for at ``before`` and here at ``after``, by our clock."""
        middle, half = (before + after) / 2, (after - before) / 2
        return cls(told + resolution / 2 - middle, half + resolution / 2)

    @property
    def least(self) -> float:
        """How far the clocks are apart at least, without a sign."""
        return max(0.0, abs(self.ahead) - self.uncertainty)
