"""Patterns on their way into the slots: what waiting ones lack, whose turn it is, and the one swap under way."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from premoe_runtime.engines.base import Engine, Load, Loaded, MaskRow, Pause, Publish, Resume, Retire, StopLoad
from premoe_runtime.formats.errors import Exhausted, PremoeError
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import BlobCopy, Copy
from premoe_runtime.residency.ledger import Ledger, Placement
from premoe_runtime.residency.plan import Load as PlannedLoad
from premoe_runtime.serving.fetches import Delivered, Fetches, FetchOver, Need
from premoe_runtime.serving.groups import Group, GroupTable, State, Step
from premoe_runtime.serving.open_requests import OpenRequests
from premoe_runtime.serving.reports import ServingStats, SwapPhase, SwapReport
from premoe_runtime.serving.requests import KeptPattern, OpenRequest
from premoe_runtime.serving.turns import Contender, next_move

logger = logging.getLogger(__name__)

MAX_COPY_THREADS = 4
"""Two threads fill the memory bus of a small machine; more only help on big ones."""


@dataclass(eq=False, slots=True)
class Swap:
    """The one swap under way. ``pending`` loads are not in their slots; ``copying`` is what the engine was given."""

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
    requests: list[OpenRequest] = field(default_factory=list)
    loads: list[Future[SwapReport]] = field(default_factory=list)
    """Who is told once it is published."""

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


class Patterns:
    """Moves groups through their states (``groups.TRANSITIONS``). Owned by the serving loop.

    What a waiting pattern lacks is fetched into host memory while others run. Once it is there and the pattern's turn
    has come, its victims are retired, its blobs copied and its row published. A slot that was not written gets its
    expert back, whatever ended the swap.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        fetches: Fetches,
        requests: OpenRequests,
        *,
        max_rows: int,
        blob_bytes: int,
        quantum: int,
        copy_rate: float | None,
    ) -> None:
        self._engine, self._ledger, self._fetches, self._requests = engine, ledger, fetches, requests
        self._host = fetches.host
        self._blob_bytes, self._quantum, self._copy_rate = blob_bytes, quantum, copy_rate
        self._groups = GroupTable(max_rows)
        self._swap: Swap | None = None
        self._publishing: deque[tuple[Swap, bool]] = deque()
        """Publishes that the engine has not acknowledged, and whether each is its swap's last."""
        self._turn_start = 0
        self._changed = True
        """Whether what waiting patterns lack may have changed since it was last looked at."""
        self.stats = ServingStats()

    # What is asked.

    def find(self, pattern: KeptPattern) -> Group:
        """See ``GroupTable.find``."""
        return self._groups.find(pattern)

    def holder(self, request: OpenRequest) -> Group | None:
        """See ``GroupTable.holder``."""
        return self._groups.holder(request)

    def enter(self, group: Group) -> None:
        """Run what is new in the group if its experts are there, else let it wait for its turn."""
        if group.state is State.RESTING:
            ready = group.row_written and not self._ledger.lacks(group.experts) and not self._loses(group)
            self._step(group, Step.FOUND if ready else Step.ASKED)
            if ready:
                self._ledger.touch(group.experts)
        if group.state is not State.RUNNING:
            return
        report = SwapReport(generation=self._ledger.generation)
        for request in [request for request in group.requests.values() if not request.submitted]:
            self._requests.announce([request], report)
            self._requests.submit(group, request)
        loads, group.loads = group.loads, []
        for done in loads:
            done.set_result(report)
        self.leave(group)

    def leave(self, group: Group) -> None:
        """A group that nobody wants any more rests; its experts are no longer pinned, what it waited for is dropped."""
        if group.wanted:
            return
        if self._swap is not None and self._swap.group is group:
            # Its copy ends first.
            self._advance()
            return
        self._let_host_go(group)
        if group.state is not State.RESTING:
            self._step(group, Step.LEFT)

    def has_room_beside_running(self, pattern: KeptPattern) -> bool:
        """Whether nobody waits for a swap, and the pattern's experts fit into the slots beside those that run."""
        if self._in_need():
            return False
        together = Counter(expert.layer for expert in self._groups.pinned() | pattern.experts)
        return all(together[layer] <= count for layer, count in enumerate(self._ledger.slots))

    def running_names(self) -> tuple[str, ...]:
        """Ids of the patterns whose experts are pinned now."""
        running = self._groups.in_state(State.RUNNING)
        return tuple(sorted({name for group in running for name in group.names()}))

    def unanswered(self) -> list[Future[SwapReport]]:
        """Who waits for a pattern to be loaded."""
        waiting = [done for group in self._groups.groups() for done in group.loads]
        return waiting + [done for swap, _ in self._publishing for done in swap.loads]

    # What is told.

    def note_delivered(self, message: Delivered) -> bool:
        """Whether the blob was for a pattern that still waits for it."""
        wanted = any(group.need is message.fetch.need for group in self._in_need())
        if wanted:
            self._fetches.arrived(message, wanted=True)
        return wanted

    def note_fetch_failed(self, message: FetchOver, error: Exception) -> None:
        for group in self._in_need():
            if group.need is message.fetch.need:
                self._fail(group, error)

    def note_changed(self) -> None:
        """Host memory has changed: look again at what waiting patterns lack."""
        self._changed = True

    def note_copied(self, message: Loaded) -> None:
        swap, copied = self._swap, message.copied
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
        self._changed = True
        self._publish(swap, placements)

    def note_published(self, at_ns: int) -> None:
        swap, done = self._publishing.popleft()
        swap.phases.append(SwapPhase("publish", swap.posted_ns, at_ns))
        if not done:
            return
        report = swap.report(self._blob_bytes, self._ledger.generation)
        self._count(report)
        report = self._requests.announce(swap.requests, report)
        for load in swap.loads:
            load.set_result(report)
            report = report.shared()
        self.leave(swap.group)

    # Decisions.

    def fetch_what_is_lacking(self, now: float) -> None:
        """Fetch for all waiting patterns, oldest first, as far as host memory goes."""
        if not self._changed:
            return
        self._changed = False
        first = True
        for group in self._in_need():
            lacking = self._lacking(group)
            if first and len(lacking) > len(group.need.held) + self._host.available:
                self._make_room(group)
            lead = next(iter(group.requests.values()), None)
            context = None if lead is None else lead.context
            self._fetches.update(group.need, lacking, first=first, context=context, now=now)
            first = first and group.need.ready
        self._advance()

    def start_next(self) -> None:
        """Begin the next pattern's turn, if it is somebody's."""
        if self._swap is not None:
            return
        waiting = [group for group in self._groups.in_state(State.WAITING) if group.wanted and group.need.ready]
        if not waiting:
            return
        move = next_move(
            [contender(group) for group in self._groups.in_state(State.RUNNING)],
            [contender(group) for group in waiting],
            self._ledger.slots,
            steps=self._requests.last.steps - self._turn_start,
            quantum=self._quantum,
        )
        if move.start is not None:
            for key in move.pause:
                self._pause(self._groups.get(key))
            self._begin(self._groups.get(move.start))

    def needs(self) -> list[Need]:
        """What waiting patterns need, oldest first."""
        return [group.need for group in self._in_need()]

    def _loses(self, group: Group) -> bool:
        """Whether the swap under way will take one of the group's experts."""
        return self._swap is not None and any(load.evicts in group.experts for load in self._swap.pending.values())

    def _step(self, group: Group, step: Step) -> None:
        self._groups.step(group, step)
        self._changed = True

    def _in_need(self) -> list[Group]:
        """Patterns that wait for blobs, the one whose turn it is first, then by age."""
        return self._groups.in_state(State.LOADING) + self._groups.in_state(State.WAITING)

    def _lacking(self, group: Group) -> Sequence[ExpertId]:
        swap = self._swap
        if swap is None or swap.group is not group:
            return self._ledger.lacks(group.experts)
        copying = {load.expert for load in swap.copying}
        return [expert for expert in swap.pending if expert not in copying]

    def _make_room(self, group: Group) -> None:
        """The tier is too small for everybody: younger ones fetch again later."""
        for other in self._groups.in_state(State.WAITING):
            if (group.state is State.LOADING or other.since > group.since) and other.need.fetch is None:
                self._fetches.let_go(other.need)
                other.need.ready = False

    def _pause(self, group: Group) -> None:
        self._engine.post(Pause(group.submitted()))
        self._step(group, Step.PAUSED)
        self.stats = replace(self.stats, pauses=self.stats.pauses + 1)
        try:
            self._host.pin(group.experts)
            group.pinned_in_host = True
        except Exhausted:
            logger.debug("host tier too small to keep pattern %s; it will be fetched again", group.pattern.id)

    def _begin(self, group: Group) -> None:
        start_ns = time.time_ns()
        self._step(group, Step.STARTED)
        loads = self._ledger.plan(group.experts, self._groups.pinned()).loads
        phases = [SwapPhase("plan", start_ns, time.time_ns())]
        pending = {load.expert: load for load in loads}
        self._swap = Swap(group, self._groups.take_row(group), pending, len(loads), phases)
        self._advance()

    def _advance(self) -> None:
        """Take the swap under way as far as it can go now: give it up, copy what is here, or publish."""
        swap = self._swap
        if swap is None:
            return
        unwanted = swap.error is not None or not swap.group.wanted
        if swap.copying:
            if unwanted:
                self._engine.post(StopLoad())
        elif unwanted:
            self._give_up(swap)
        elif ready := [load for load in swap.pending.values() if load.expert in swap.group.need.held]:
            self._copy(swap, ready)
        elif not swap.pending:
            self._publish(swap, ())

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
        threads = copy_threads(self._requests.last.running, len(os.sched_getaffinity(0)))
        swap.copying, swap.saving = tuple(ready), tuple(save.expert for save in saves)
        swap.evicted += len(victims)
        swap.posted_ns = time.time_ns()
        self._engine.post(Retire(victims))
        self._engine.post(Load(Copy(tuple(loads), tuple(saves), threads, self._copy_rate)))

    def _publish(self, swap: Swap, placements: tuple[Placement, ...]) -> None:
        """Enter what the slots hold; with the last of it the pattern's row, and its sequences run."""
        group = swap.group
        done = not swap.pending and swap.error is None and group.wanted
        row = MaskRow(swap.row, group.pattern.kept, group.pattern.semantics) if done else None
        swap.posted_ns = time.time_ns()
        self._publishing.append((swap, done))
        self._engine.post(Publish(placements, row))
        if not done:
            self._advance()
            return
        self._swap = None
        group.row_written = True
        self._step(group, Step.PUBLISHED)
        self._ledger.touch(group.experts)
        swap.fetched, swap.fetch_ns = group.need.delivered, group.need.fetch_ns
        self._let_host_go(group)
        self._turn_start = self._requests.last.steps
        self._engine.post(Resume(group.submitted()))
        swap.requests, swap.loads, group.loads = list(group.requests.values()), group.loads, []
        for request in swap.requests:
            if not request.submitted:
                self._requests.submit(group, request)

    def _give_up(self, swap: Swap) -> None:
        """Nothing is being copied: the swap ends, and what it brought so far stays."""
        self._swap = None
        self._step(swap.group, Step.FAILED)
        if swap.error is not None:
            self._fail(swap.group, swap.error)
        else:
            self.leave(swap.group)

    def _fail(self, group: Group, error: Exception) -> None:
        """A swap failed: everything under this pattern fails with it, everything else goes on."""
        swap = self._swap
        if swap is not None and swap.group is group:
            swap.error = error
            self._advance()
            return
        if not isinstance(error, PremoeError):
            logger.error("swapping in pattern %s failed", group.pattern.id, exc_info=error)
        self.stats = replace(self.stats, failed_swaps=self.stats.failed_swaps + 1)
        loads, group.loads = group.loads, []
        for done in loads:
            done.set_exception(error)
        self._requests.fail(group, error)
        self.leave(group)

    def _let_host_go(self, group: Group) -> None:
        self._fetches.drop(group.need)
        if group.pinned_in_host:
            group.pinned_in_host = False
            self._host.unpin(group.experts)

    def _count(self, report: SwapReport) -> None:
        old = self.stats
        self.stats = replace(
            old,
            swaps=old.swaps + 1,
            blobs_loaded=old.blobs_loaded + report.blobs,
            bytes_loaded=old.bytes_loaded + report.bytes,
            bytes_fetched=old.bytes_fetched + report.bytes_fetched,
        )


def contender(group: Group) -> Contender:
    return Contender(group.key, group.pattern.kept, group.since)


def copy_threads(running: int, cores: int) -> int:
    """Threads for a swap's copies: they compete with decoding for memory and cores, so one while anything runs."""
    return 1 if running else min(MAX_COPY_THREADS, cores)
