"""The host tier: blobs in main memory, digests already checked, least recently used ones give way."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path

import blake3
import torch

from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.host_arena import MIN_BLOBS, HostArena
from premoe_runtime.residency.plan import whole_host_bytes


def default_host_bytes(blob_bytes: int, slots: int, available: int) -> int:
    """Bytes of a host tier when nobody says: ``whole_host_bytes``, at most a quarter of the ``available`` memory."""
    whole = whole_host_bytes(blob_bytes, slots + MIN_BLOBS)
    return min(whole, max(available // 4, MIN_BLOBS * blob_bytes))


def available_memory() -> int:
    """Bytes of main memory that this process may still take, by the kernel's estimate and the container's limit."""
    text = Path("/proc/meminfo").read_text()
    free = next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return free


def bytes_of(blob: torch.Tensor) -> memoryview:
    """The bytes of a uint8[n] tensor in main memory, shared and writable."""
    view: memoryview = blob.numpy().data
    return view


def digest_of(blob: torch.Tensor) -> str:
    """blake3 of a uint8[n] tensor on any device, lower-case hex."""
    return blake3.blake3(bytes_of(blob.cpu())).hexdigest()


class HostTier:
    """Which blob lies at which place of the arena. One owner; not thread-safe.

    A blob is *filling* between ``reserve`` and ``commit``, *held* while someone will copy from it, *pinned* while a
    paused sequence will need it again; only blobs in none of these states are evicted, least recently used first.
    Every method takes time by what it changes, not by what the tier holds.
    """

    def __init__(self, arena: HostArena) -> None:
        self.arena = arena
        self._places: dict[ExpertId, int] = {}
        self._digests: dict[ExpertId, str] = {}
        self._filling: dict[ExpertId, int] = {}
        self._held: Counter[ExpertId] = Counter()
        self._pins: Counter[ExpertId] = Counter()
        self._idle: OrderedDict[ExpertId, None] = OrderedDict()
        """Blobs that may be evicted, oldest use first."""
        self._free = list(range(arena.capacity - 1, -1, -1))

    @property
    def capacity(self) -> int:
        return self.arena.capacity

    @property
    def available(self) -> int:
        """Blobs that could be taken in now."""
        return len(self._free) + len(self._idle)

    def __contains__(self, expert: object) -> bool:
        return expert in self._places

    def is_filling(self, expert: ExpertId) -> bool:
        return expert in self._filling

    def experts(self) -> frozenset[ExpertId]:
        return frozenset(self._places)

    def place(self, expert: ExpertId) -> int:
        return self._places[expert]

    def digest(self, expert: ExpertId) -> str:
        return self._digests[expert]

    def hold(self, expert: ExpertId) -> None:
        """Keep a blob that is here in place until ``let_go``; counts as a use."""
        self._held[expert] += 1
        self._idle.pop(expert, None)

    def let_go(self, expert: ExpertId) -> None:
        self._held[expert] -= 1
        if not self._held[expert]:
            del self._held[expert]
            self._sort(expert)

    def reserve(self, expert: ExpertId) -> int:
        """A place for a blob that is about to be read.

        Raises Exhausted when every blob is in use, Conflict when this one is here or being read already.
        """
        if expert in self._places or expert in self._filling:
            raise Conflict(f"{expert} is in the host tier already", reason="BLOB_PRESENT")
        if not self._free:
            if not self._idle:
                raise Exhausted(
                    f"all {self.capacity} blobs of the host tier are pinned or in use; give it more memory",
                    reason="HOST_TIER_FULL",
                )
            victim, _ = self._idle.popitem(last=False)
            self._free.append(self._places.pop(victim))
            del self._digests[victim]
        self._filling[expert] = self._free.pop()
        return self._filling[expert]

    def commit(self, expert: ExpertId, digest: str) -> None:
        """The reserved blob is complete and its bytes have this digest."""
        self._places[expert] = self._filling.pop(expert)
        self._digests[expert] = digest
        self._sort(expert)

    def discard(self, expert: ExpertId) -> None:
        """Give a reservation back; without one, does nothing."""
        place = self._filling.pop(expert, None)
        if place is not None:
            self._free.append(place)

    def pin(self, experts: Iterable[ExpertId]) -> None:
        """Keep these blobs once they are here; pins count. Raises Exhausted when too little room would be left."""
        wanted = frozenset(experts)
        if len(self._pins) + sum(expert not in self._pins for expert in wanted) > self.capacity - MIN_BLOBS:
            raise Exhausted(
                f"pinning {len(wanted)} blobs leaves no room to swap in a host tier of {self.capacity}; "
                "give it more memory",
                reason="HOST_TIER_FULL",
            )
        self._pins.update(wanted)
        for expert in wanted:
            self._idle.pop(expert, None)

    def unpin(self, experts: Iterable[ExpertId]) -> None:
        for expert in experts:
            self._pins[expert] -= 1
            if self._pins[expert] <= 0:
                del self._pins[expert]
                self._sort(expert)

    def is_pinned(self, expert: ExpertId) -> bool:
        return expert in self._pins

    def check_integrity(self) -> None:
        """Raise CorruptData when a blob no longer has the digest it came with, or the books do not add up."""
        for expert, place in self._places.items():
            if digest_of(self.arena.blob(place)) != self._digests[expert]:
                raise CorruptData(f"{expert} changed in the host tier", reason="BLOB_DIGEST")
        places = [*self._places.values(), *self._filling.values(), *self._free]
        idle = {e for e in self._places if e not in self._held and e not in self._pins}
        if sorted(places) != list(range(self.capacity)) or idle != self._idle.keys():
            raise CorruptData("the host tier's places do not add up", reason="TABLES_DIFFER")

    def _sort(self, expert: ExpertId) -> None:
        """Into the blobs that may be evicted, if nothing keeps it."""
        if expert in self._places and expert not in self._held and expert not in self._pins:
            self._idle[expert] = None
