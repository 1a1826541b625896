"""A leaky bucket, as a value: how much was used lately, where what was used is forgotten at a steady rate.

Our own, because the libraries of rate limits (`limits`, `aiolimiter`) refuse a cost before it is spent, and what an
answer costs in tokens is known only after it: a bucket may overflow, and takes nothing more until it has run down.
"""

from __future__ import annotations

from dataclasses import dataclass

MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """``amount`` was in it at ``at`` (seconds of any clock). It holds a minute's worth and leaks as fast."""

    amount: float = 0.0
    at: float = 0.0

    def level(self, now: float, per_minute: int) -> float:
        """What is in it."""
        return max(0.0, self.amount - max(0.0, now - self.at) * per_minute / MINUTE_S)

    def plus(self, amount: float, now: float, per_minute: int) -> Bucket:
        """With so much more in it, whether it has room or not."""
        return Bucket(self.level(now, per_minute) + amount, max(now, self.at))

    def wait_s(self, now: float, per_minute: int) -> float:
        """Seconds until it has room for one; 0 when it has now."""
        return max(0.0, self.level(now, per_minute) + 1 - per_minute) * MINUTE_S / per_minute
