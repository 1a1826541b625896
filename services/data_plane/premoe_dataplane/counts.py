"""What a fetcher counts."""

from __future__ import annotations

import threading
from collections import Counter

from premoe_dataplane.plan import Scheme, Tier


class Counts:
    """Sums since the start. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes: Counter[tuple[Scheme, Tier]] = Counter()
        self._wrong: Counter[Tier] = Counter()
        self._again: Counter[Scheme] = Counter()

    def read(self, scheme: Scheme, tier: Tier, num_bytes: int) -> None:
        """Bytes in place and right."""
        with self._lock:
            self._bytes[scheme, tier] += num_bytes

    def wrong(self, tier: Tier) -> None:
        """A piece, or a blob without sums of its pieces, that came wrong."""
        with self._lock:
            self._wrong[tier] += 1

    def again(self, scheme: Scheme, pieces: int) -> None:
        """Pieces that did not come, or came wrong, and are asked of another source."""
        with self._lock:
            self._again[scheme] += pieces

    def now(self) -> tuple[Counter[tuple[Scheme, Tier]], Counter[Tier], Counter[Scheme]]:
        """Bytes by scheme and tier, wrong copies by tier, pieces asked again by scheme."""
        with self._lock:
            return self._bytes.copy(), self._wrong.copy(), self._again.copy()
