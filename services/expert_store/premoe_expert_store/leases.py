"""Leases of workers on blobs: what is leased goes last when the cache makes room. A hint that ends by itself."""

from __future__ import annotations

import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from premoe_runtime.formats.errors import NotFound

MOST_BLOBS = 1 << 22
"""Of all leases together; beyond it the oldest ones end early."""


class Lease(NamedTuple):
    """``expires_at``: seconds since 1970."""

    lease_id: str
    expires_at: float


class Leases:
    """Leases of ``seconds`` each. Not safe from several threads, but for ``holds``."""

    def __init__(self, seconds: float, *, most: int = MOST_BLOBS, clock: Callable[[], float] = time.time) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._ends: OrderedDict[str, tuple[float, Sequence[str]]] = OrderedDict()
        self._blobs: Counter[str] = Counter()
        self._total = 0

    def __len__(self) -> int:
        return len(self._ends)

    def holds(self, digest: str) -> bool:
        """Whether a blob is leased by anybody."""
        return digest in self._blobs

    def grant(self, digests: Sequence[str]) -> Lease:
        """A new lease."""
        self.sweep()
        lease = Lease(secrets.token_hex(8), self._clock() + self._seconds)
        self._ends[lease.lease_id] = (lease.expires_at, digests)
        self._blobs.update(digests)
        self._total += len(digests)
        while self._total > self._most and len(self._ends) > 1:
            self.release(next(iter(self._ends)))
        return lease

    def renew(self, lease_id: str) -> Lease:
        """Prolong it. Raises NotFound when it has ended."""
        self.sweep()
        if lease_id not in self._ends:
            raise NotFound(f"lease {lease_id[:32]!r} has ended; resolve again", reason="LEASE_ENDED")
        lease = Lease(lease_id, self._clock() + self._seconds)
        self._ends[lease_id] = (lease.expires_at, self._ends[lease_id][1])
        self._ends.move_to_end(lease_id)
        return lease

    def release(self, lease_id: str) -> None:
        """End it, if it has not ended."""
        _, digests = self._ends.pop(lease_id, (0.0, ()))
        self._total -= len(digests)
        for digest in digests:
            self._blobs[digest] -= 1
            if self._blobs[digest] <= 0:
                del self._blobs[digest]

    def sweep(self) -> None:
        """End those whose time has come: the oldest ones, as all are equally long."""
        now = self._clock()
        while self._ends:
            lease_id, (ends, _) = next(iter(self._ends.items()))
            if ends > now:
                return
            self.release(lease_id)
