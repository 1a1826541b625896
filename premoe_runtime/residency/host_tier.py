"""The host tier: blobs in main memory, digests already checked, least recently used ones give way."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable

import blake3
import torch

from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.arena import zeroed

MIN_BLOBS = 2
"""Blobs that stay free of pins, so that a swap always has a way through."""


def bytes_of(blob: torch.Tensor) -> memoryview:
    """The bytes of a uint8[n] tensor in main memory, shared and writable."""
    view: memoryview = blob.numpy().data
    return view


def digest_of(blob: torch.Tensor) -> str:
    """blake3 of a uint8[n] tensor on any device, lower-case hex."""
    return blake3.blake3(bytes_of(blob.cpu())).hexdigest()


class HostTier:
    """One arena of ``capacity`` blobs. Safe to call from several threads.

    A blob is *filling* between ``reserve`` and ``commit``, *held* while someone copies from it, *pinned* while a paused
    sequence will need it again; only blobs in none of these states are evicted, oldest first.
    """

    def __init__(self, blob_bytes: int, capacity_bytes: int, *, page_locked: bool = False) -> None:
        self.capacity = max(MIN_BLOBS, capacity_bytes // blob_bytes)
        self._arena = zeroed(self.capacity, blob_bytes, torch.device("cpu"), page_locked=page_locked)
        self._lock = threading.RLock()
        self._blobs: OrderedDict[ExpertId, int] = OrderedDict()
        self._digests: dict[ExpertId, str] = {}
        self._filling: dict[ExpertId, int] = {}
        self._held: Counter[ExpertId] = Counter()
        self._pins: Counter[ExpertId] = Counter()
        self._free = list(range(self.capacity - 1, -1, -1))

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole arena."""
        return self._arena.numel()

    @property
    def available(self) -> int:
        """Blobs that could be taken in now."""
        with self._lock:
            return len(self._free) + sum(self._evictable(expert) for expert in self._blobs)

    def __contains__(self, expert: object) -> bool:
        with self._lock:
            return expert in self._blobs

    def experts(self) -> frozenset[ExpertId]:
        with self._lock:
            return frozenset(self._blobs)

    def hold(self, expert: ExpertId) -> torch.Tensor | None:
        """The blob (uint8[blob_bytes]) if it is here, kept in place until ``let_go``; counts as a use."""
        with self._lock:
            if expert not in self._blobs:
                return None
            self._blobs.move_to_end(expert)
            self._held[expert] += 1
            return self._arena[self._blobs[expert]]

    def let_go(self, expert: ExpertId) -> None:
        with self._lock:
            self._held[expert] -= 1
            if not self._held[expert]:
                del self._held[expert]

    def reserve(self, expert: ExpertId) -> torch.Tensor:
        """Room (uint8[blob_bytes]) for a blob that is about to be read.

        Raises Exhausted when every blob is in use, Conflict when this one is here or being read already.
        """
        with self._lock:
            if expert in self._blobs or expert in self._filling:
                raise Conflict(f"{expert} is in the host tier already", reason="BLOB_PRESENT")
            if not self._free:
                victim = next((e for e in self._blobs if self._evictable(e)), None)
                if victim is None:
                    raise Exhausted(
                        f"all {self.capacity} blobs of the host tier are pinned or in use; give it more memory",
                        reason="HOST_TIER_FULL",
                    )
                self._free.append(self._blobs.pop(victim))
                del self._digests[victim]
            slot = self._free.pop()
            self._filling[expert] = slot
            return self._arena[slot]

    def commit(self, expert: ExpertId, digest: str) -> None:
        """The reserved blob is complete and its bytes have this digest; it is held until ``let_go``."""
        with self._lock:
            self._blobs[expert] = self._filling.pop(expert)
            self._digests[expert] = digest
            self._held[expert] += 1

    def discard(self, expert: ExpertId) -> None:
        """Give a reservation back; without one, does nothing."""
        with self._lock:
            slot = self._filling.pop(expert, None)
            if slot is not None:
                self._free.append(slot)

    def digest(self, expert: ExpertId) -> str:
        with self._lock:
            return self._digests[expert]

    def pin(self, experts: Iterable[ExpertId]) -> None:
        """Keep these blobs once they are here; pins count. Raises Exhausted when too little room would be left."""
        wanted = Counter(experts)
        with self._lock:
            if len((self._pins + wanted).keys()) > self.capacity - MIN_BLOBS:
                raise Exhausted(
                    f"pinning {len(wanted)} blobs leaves no room to swap in a host tier of {self.capacity}; "
                    "give it more memory",
                    reason="HOST_TIER_FULL",
                )
            self._pins += wanted

    def unpin(self, experts: Iterable[ExpertId]) -> None:
        with self._lock:
            self._pins -= Counter(experts)

    def is_pinned(self, expert: ExpertId) -> bool:
        with self._lock:
            return self._pins[expert] > 0

    def check_integrity(self) -> None:
        """Raise CorruptData when a blob no longer has the digest it came with."""
        with self._lock:
            for expert, slot in self._blobs.items():
                if digest_of(self._arena[slot]) != self._digests[expert]:
                    raise CorruptData(f"{expert} changed in the host tier", reason="BLOB_DIGEST")

    def _evictable(self, expert: ExpertId) -> bool:
        return self._pins[expert] == 0 and self._held[expert] == 0
