"""The one swap under way: retire, copy and publish, as far as its blobs have come into host memory."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from premoe_runtime.engines.base import Engine, Load, Loaded, MaskRow, Publish, Retire, StopLoad
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import BlobCopy, Copy
from premoe_runtime.residency.ledger import Ledger, Placement
from premoe_runtime.residency.plan import Load as PlannedLoad
from premoe_runtime.serving.fetches import Fetches
from premoe_runtime.serving.groups import Group, GroupTable
from premoe_runtime.serving.open_requests import OpenRequests
from premoe_runtime.serving.reports import SwapPhase, SwapReport
from premoe_runtime.serving.requests import OpenRequest

MAX_COPY_THREADS = 4
"""Two threads fill the memory bus of a small machine; more only help on big ones."""


@dataclass(eq=False, slots=True)
class Swap:
    """A group's way into the slots. ``pending`` loads are not there yet; ``copying`` is what the engine was given."""

    group: Group
    row: int
    pending: dict[ExpertId, PlannedLoad]
    blobs: int
    phases: list[SwapPhase]
    copying: tuple[PlannedLoad, ...] = ()
    saving: tuple[ExpertId, ...] = ()
    posted_ns: int = 0
    evicted: int = 0
    fetched: int = 0
    fetch_ns: tuple[int, int] = (0, 0)
    error: Exception | None = None
    published: bool = False
    """Whether its row was posted; else it is under way, or was given up."""
    requests: list[OpenRequest] = field(default_factory=list)
    loads: list[Future[SwapReport]] = field(default_factory=list)
    """Who is told once the engine has published it."""

    def report(self, blob_bytes: int, generation: int) -> SwapReport:
        return SwapReport(
            blobs=self.blobs,
            bytes=self.blobs * blob_bytes,
            evicted=self.evicted,
            blobs_fetched=self.fetched,
            bytes_fetched=self.fetched * blob_bytes,
            generation=generation,
            phases=(*([SwapPhase("fetch", *self.fetch_ns)] if self.fetched else []), *self.phases),
        )


class Swaps:
    """Carries out one swap at a time. Owned by the serving loop.

    A slot that was not written gets its expert back, whatever ended the swap. ``advance`` and ``note_copied`` return
    the swap once it is over: its row is posted, or it was given up and nothing of it is being copied.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        fetches: Fetches,
        groups: GroupTable,
        requests: OpenRequests,
        *,
        copy_rate: float | None,
    ) -> None:
        self._engine, self._ledger, self._fetches = engine, ledger, fetches
        self._host = fetches.host
        self._groups, self._requests = groups, requests
        self._copy_rate = copy_rate
        self._publishing: deque[tuple[Swap, bool]] = deque()
        """Publishes that the engine has not acknowledged, and whether each is its swap's last."""
        self.current: Swap | None = None

    def of(self, group: Group) -> Swap | None:
        """The swap under way, if it is the group's."""
        return self.current if self.current is not None and self.current.group is group else None

    def takes_from(self, group: Group) -> bool:
        """Whether the swap under way will take one of the group's experts."""
        return self.current is not None and any(load.evicts in group.experts for load in self.current.pending.values())

    def lacking(self, group: Group) -> Sequence[ExpertId]:
        """The group's experts that have still to come into host memory for their slots."""
        swap = self.of(group)
        if swap is None:
            return self._ledger.lacks(group.experts)
        copying = {load.expert for load in swap.copying}
        return [expert for expert in swap.pending if expert not in copying]

    def needless(self, group: Group) -> set[ExpertId]:
        """What the group holds in host memory, and will not copy: others have brought it into slots meanwhile."""
        swap = self.of(group)
        return group.need.held.difference(self._ledger.lacks(group.experts) if swap is None else swap.pending)

    def unanswered(self) -> list[Future[SwapReport]]:
        """Who waits for a published swap to be acknowledged."""
        return [done for swap, _ in self._publishing for done in swap.loads]

    def begin(self, group: Group) -> None:
        """Plan the group's swap; ``advance`` carries it out."""
        start_ns = time.time_ns()
        loads = self._ledger.plan(group.experts, self._groups.pinned())
        phases = [SwapPhase("plan", start_ns, time.time_ns())]
        self.current = Swap(
            group, self._groups.take_row(group), {load.expert: load for load in loads}, len(loads), phases
        )

    def advance(self) -> Swap | None:
        """Take the swap under way as far as it can go now: give it up, copy what is here, or publish."""
        swap = self.current
        if swap is None:
            return None
        unwanted = swap.error is not None or not swap.group.wanted
        if swap.copying:
            if unwanted:
                self._engine.post(StopLoad())
            return None
        if unwanted:
            # What it brought so far stays.
            self.current = None
            return swap
        if ready := [load for load in swap.pending.values() if load.expert in swap.group.need.held]:
            self._copy(swap, ready)
            return None
        if swap.pending:
            return None
        return self._publish(swap, ())

    def note_copied(self, message: Loaded) -> Swap | None:
        swap, copied = self.current, message.copied
        assert swap is not None, "a copy belongs to the swap under way"
        placements = self._ledger.settle(swap.copying, copied.written, copied.torn)
        for load in swap.copying:
            if load.expert in copied.written:
                del swap.pending[load.expert]
                self._fetches.let_go(swap.group.need, [load.expert])
            elif load.expert in copied.torn:
                swap.pending[load.expert] = replace(load, evicts=None)
        for save in swap.saving:
            if save in copied.saved:
                self._host.commit(save, copied.saved[save])
            else:
                self._host.discard(save)
        swap.phases += [
            SwapPhase("retire", swap.posted_ns, message.retired_ns),
            SwapPhase("copy", copied.start_ns, copied.end_ns),
        ]
        swap.copying, swap.saving = (), ()
        swap.error = swap.error or copied.error
        return self._publish(swap, placements) or self.advance()

    def note_published(self, at_ns: int) -> Swap | None:
        """The swap whose row is in force now, if this was its last publish."""
        swap, last = self._publishing.popleft()
        swap.phases.append(SwapPhase("publish", swap.posted_ns, at_ns))
        return swap if last else None

    def _copy(self, swap: Swap, ready: Sequence[PlannedLoad]) -> None:
        """Retire the victims of what is ready, and have it copied."""
        victims = self._ledger.retire(ready, in_use=self._groups.pinned())
        saves = []
        for load in ready:
            # Paused sequences want their blobs in host memory: they are taken from the slots before those are written.
            victim = load.evicts
            if victim is None or not self._host.is_pinned(victim) or victim in self._host:
                continue
            if self._host.available and not self._host.is_filling(victim):
                saves.append(BlobCopy(victim, self._host.reserve(victim), load.slot, ""))
        loads = [
            BlobCopy(load.expert, self._host.place(load.expert), load.slot, self._host.digest(load.expert))
            for load in ready
        ]
        # Copies compete with decoding for memory and cores, so one thread while anything runs.
        cores = len(os.sched_getaffinity(0))
        threads = 1 if self._requests.last.running else min(MAX_COPY_THREADS, cores)
        swap.copying, swap.saving = tuple(ready), tuple(save.expert for save in saves)
        swap.evicted += len(victims)
        swap.posted_ns = time.time_ns()
        self._engine.post(Retire(victims))
        self._engine.post(Load(Copy(tuple(loads), tuple(saves), threads, self._copy_rate)))

    def _publish(self, swap: Swap, placements: tuple[Placement, ...]) -> Swap | None:
        """Enter what the slots hold; with the last of it the group's row."""
        group = swap.group
        swap.published = not swap.pending and swap.error is None and group.wanted
        row = MaskRow(swap.row, group.pattern.kept, group.pattern.semantics) if swap.published else None
        swap.posted_ns = time.time_ns()
        self._publishing.append((swap, swap.published))
        self._engine.post(Publish(placements, row))
        if not swap.published:
            return None
        self.current = None
        return swap
