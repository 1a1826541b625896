"""What the serving loop tells of swaps and of what is resident: values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class SwapPhase:
    """``fetch``, ``plan``, ``retire``, ``copy`` or ``publish``; Unix time in ns."""

    name: str
    start_ns: int
    end_ns: int

    @property
    def milliseconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What a request's swap moved. ``bytes_fetched`` came from the source, the rest was in host memory."""

    blobs: int = 0
    bytes: int = 0
    evicted: int = 0
    blobs_fetched: int = 0
    bytes_fetched: int = 0
    generation: int = 0
    phases: tuple[SwapPhase, ...] = ()

    @property
    def milliseconds(self) -> float:
        """From the first byte fetched to the end of publishing; 0 when nothing had to be done."""
        if not self.phases:
            return 0.0
        return (max(p.end_ns for p in self.phases) - min(p.start_ns for p in self.phases)) / 1e6

    def shared(self) -> SwapReport:
        """For others that waited for the same swap: its times, but none of its bytes, so that sums stay true."""
        return replace(self, blobs=0, bytes=0, evicted=0, blobs_fetched=0, bytes_fetched=0)


@dataclass(frozen=True, slots=True)
class Residency:
    """A snapshot. ``slots``: per MoE layer the expert in each slot, or -1. ``running_patterns``: pinned now."""

    generation: int
    slots: tuple[tuple[int, ...], ...]
    device_bytes: int
    host_bytes: int
    running: int
    waiting: int
    running_patterns: tuple[str, ...]
    loaded_patterns: tuple[str, ...]


@dataclass(slots=True)
class ServingStats:
    """Counters since start. ``bytes_loaded`` went into slots, ``bytes_fetched`` came from the source.

    ``host_hits``: loaded blobs that were in host memory before anybody asked. ``phase_ns``: time that swaps took, by
    phase.
    """

    swaps: int = 0
    failed_swaps: int = 0
    blobs_loaded: int = 0
    bytes_loaded: int = 0
    bytes_fetched: int = 0
    host_hits: int = 0
    pauses: int = 0
    phase_ns: Counter[str] = field(default_factory=Counter)

    def count(self, swap: SwapReport) -> None:
        self.swaps += 1
        self.blobs_loaded += swap.blobs
        self.bytes_loaded += swap.bytes
        self.bytes_fetched += swap.bytes_fetched
        # What was fetched for this swap may have come into a slot by an earlier one.
        self.host_hits += max(0, swap.blobs - swap.blobs_fetched)
        for phase in swap.phases:
            self.phase_ns[phase.name] += phase.end_ns - phase.start_ns

    def copied(self) -> ServingStats:
        """As they are now, for another thread."""
        return replace(self, phase_ns=self.phase_ns.copy())
