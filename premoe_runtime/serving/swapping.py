"""Carrying out one swap through the engine's boundaries, and saying what it moved and how long each phase took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from premoe_runtime.engines.base import Engine
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.residency import swap
from premoe_runtime.residency.bank import ExpertBank, Kept, Semantics
from premoe_runtime.residency.plan import SwapPlan
from premoe_runtime.residency.source import ExpertSource

_MAX_COPY_THREADS = 4
"""Two threads fill the memory bus of a small machine; more only help on big ones."""


@dataclass(frozen=True, slots=True)
class SwapPhase:
    """``plan``, ``retire``, ``fetch`` (inside ``copy``), ``copy`` or ``publish``; Unix time in ns."""

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
        """From the start of planning to the end of publishing; 0 when nothing had to be done."""
        if not self.phases:
            return 0.0
        return (max(p.end_ns for p in self.phases) - min(p.start_ns for p in self.phases)) / 1e6

    def phase(self, name: str) -> SwapPhase | None:
        return next((phase for phase in self.phases if phase.name == name), None)

    def shared(self) -> SwapReport:
        """For others that waited for the same swap: its times, but none of its bytes, so that sums stay true."""
        return replace(self, blobs=0, bytes=0, evicted=0, blobs_fetched=0, bytes_fetched=0)


class Stopwatch:
    """Collects phases."""

    def __init__(self) -> None:
        self.phases: list[SwapPhase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.time_ns()
        yield
        self.phases.append(SwapPhase(name, start, time.time_ns()))


class MeteredSource:
    """A source that notes when it was asked and how many blobs it delivered."""

    def __init__(self, source: ExpertSource) -> None:
        self._source = source
        self.first_ns = 0
        self.last_ns = 0
        self.delivered = 0

    def manifest(self) -> Manifest:
        return self._source.manifest()

    def read_file(self, path: str) -> bytes:
        return self._source.read_file(path)

    def fetch(
        self,
        experts: Sequence[ExpertId],
        into: Callable[[ExpertId], memoryview],
        done: Callable[[ExpertId], None],
        cancelled: Callable[[], bool] = swap.never,
    ) -> None:
        def count(expert: ExpertId) -> None:
            self.delivered += 1
            done(expert)

        self.first_ns = self.first_ns or time.time_ns()
        try:
            self._source.fetch(experts, into, count, cancelled)
        finally:
            self.last_ns = time.time_ns()


class Swapper:
    """Runs one swap at a time: retire at a boundary, copy on the calling thread, publish at a later boundary."""

    def __init__(
        self, engine: Engine, bank: ExpertBank, source: ExpertSource, *, bytes_per_second: float | None = None
    ) -> None:
        self._engine = engine
        self._bank = bank
        self._source = source
        self._rate = bytes_per_second

    def run(
        self,
        plan: SwapPlan,
        row: int,
        kept: Kept,
        semantics: Semantics,
        *,
        pinned: frozenset[ExpertId],
        cancelled: Callable[[], bool],
        planned: SwapPhase,
    ) -> SwapReport | None:
        """Make the plan true and write ``row``; None when cancelled. Raises what fetching raises.

        Decoding of everything pinned goes on meanwhile. After a failure or a cancellation the slots that were to be
        filled are absent, and the row is as it was.
        """
        watch = Stopwatch()
        metered = MeteredSource(self._source)
        generation = 0

        def publish() -> None:
            nonlocal generation
            generation = swap.publish(self._bank, plan, {row: kept}, semantics=semantics)

        with watch.phase("retire"):
            self._engine.at_boundary(lambda: swap.retire(self._bank, plan, in_use=pinned))
        try:
            with watch.phase("copy"):
                threads = copy_threads(self._engine.stats().running, len(os.sched_getaffinity(0)))
                done = swap.copy(self._bank, plan, metered, cancelled, bytes_per_second=self._rate, threads=threads)
                if not done:
                    return None
            with watch.phase("publish"):
                self._engine.at_boundary(publish)
        except BaseException:
            self._bank.abandon(plan)
            raise
        phases = [planned, *watch.phases]
        if metered.first_ns:
            phases.insert(2, SwapPhase("fetch", metered.first_ns, metered.last_ns))
        return SwapReport(
            blobs=plan.blobs,
            bytes=plan.bytes,
            evicted=len(plan.victims),
            blobs_fetched=metered.delivered,
            bytes_fetched=metered.delivered * self._bank.manifest.layout.blob_bytes,
            generation=generation,
            phases=tuple(phases),
        )


def copy_threads(running: int, cores: int) -> int:
    """Threads for a swap's copies: they compete with decoding for memory and cores, so one while anything runs."""
    return 1 if running else min(_MAX_COPY_THREADS, cores)
