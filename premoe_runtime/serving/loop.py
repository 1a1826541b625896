"""The serving loop: one thread owns all serving state, hears messages, decides, and posts commands to the engine.

A turn of the loop reads: receive, fetch what waiting patterns lack, start the next swap. Requests, engine reports and
fetched blobs are messages; nothing here blocks but the inbox.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

from premoe_runtime.engines.base import (
    Cancel,
    Check,
    Checked,
    Ended,
    Engine,
    Load,
    Loaded,
    MaskRow,
    Pause,
    Publish,
    Published,
    Report,
    Resume,
    Retire,
    SequenceRequest,
    StepReport,
    StopLoad,
    Submit,
    TokenEvent,
)
from premoe_runtime.formats.errors import Conflict, Exhausted, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import BlobCopy, Copy
from premoe_runtime.residency.ledger import Entry as LedgerEntry
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.residency.plan import Load as PlannedLoad
from premoe_runtime.serving.fetches import Delivered, Fetches, FetchOver, Need
from premoe_runtime.serving.groups import Group, GroupTable, State, Step
from premoe_runtime.serving.messages import (
    CancelRequest,
    CheckBytes,
    Close,
    Drain,
    Generate,
    LoadPattern,
    Look,
    Message,
    PreloadPattern,
    UnloadPattern,
)
from premoe_runtime.serving.reports import Residency, ServingStats, SwapPhase, SwapReport
from premoe_runtime.serving.requests import Entry, KeptPattern
from premoe_runtime.serving.turns import Contender, kv_key, next_move

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
    entries: list[Entry] = field(default_factory=list)
    loads: list[Future[SwapReport]] = field(default_factory=list)
    """Who is told once it is published."""


@dataclass(eq=False, slots=True)
class Stock:
    """A loaded pattern whose blobs are to come into host memory as well."""

    pattern_id: str
    need: Need
    report: SwapReport
    done: Future[SwapReport]


class ServingLoop:
    """Not thread-safe but for ``post``. See ``Front`` for what is asked of it."""

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        fetches: Fetches,
        inbox: SimpleQueue[Message | Report | Delivered | FetchOver],
        *,
        max_rows: int,
        weights_id: str,
        blob_bytes: int,
        quantum: int,
        max_waiting: int,
        copy_rate: float | None,
    ) -> None:
        self._engine, self._ledger, self._fetches, self._inbox = engine, ledger, fetches, inbox
        self._host = fetches.host
        self._weights_id, self._blob_bytes = weights_id, blob_bytes
        self._quantum, self._max_waiting, self._copy_rate = quantum, max_waiting, copy_rate
        self._groups = GroupTable(max_rows)
        self._entries: dict[str, Entry] = {}
        self._swap: Swap | None = None
        self._publishing: deque[tuple[Swap, bool]] = deque()
        """Publishes that the engine has not acknowledged, and whether each is its swap's last."""
        self._loaded: dict[str, frozenset[ExpertId]] = {}
        self._stocks: list[Stock] = []
        self._drains: list[Future[None]] = []
        self._checks: deque[Future[None]] = deque()
        self._last = StepReport()
        self._turn_start = 0
        self._dirty = True
        """Whether anything changed since it was last looked at what waiting patterns lack."""
        self._closing = False
        self.draining = False
        self.unfinished = 0
        """Requests that have not ended; with ``running`` it tells others early that there is no room."""
        self._stats = ServingStats()

    @property
    def running(self) -> int:
        return self._last.running

    def run(self) -> BaseException | None:
        """Serve until closed. Whatever ends it ends every request first; returns why, unless it was closed."""
        failure: BaseException | None = None
        try:
            while not self._closing:
                self._receive()
                if self._dirty:
                    self._dirty = False
                    self._fetch_for_waiting()
                self._start_next()
        except BaseException as error:
            failure = error
            logger.critical("serving ends: %s", error, exc_info=not isinstance(error, EngineEnded))
        self._end_everything(failure)
        return failure

    # Receiving.

    def _receive(self) -> None:
        """One message at least, or a retry that is due; then all that are there."""
        try:
            message = self._inbox.get(timeout=self._until_retry())
        except Empty:
            self._dirty = True
            return
        try:
            while not self._closing:
                self._note(message)
                message = self._inbox.get_nowait()
        except Empty:
            pass

    def _until_retry(self) -> float | None:
        due = [need.retry_at for need in self._needs() if need.retry_at]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _note(self, message: Message | Report | Delivered | FetchOver) -> None:
        match message:
            case StepReport():
                self._note_step(message)
            case Generate(entry):
                self._generate(entry)
            case CancelRequest(entry):
                self._cancel(entry)
            case Delivered(fetch):
                self._fetches.arrived(message, wanted=self._is_needed(fetch.need))
            case FetchOver():
                self._note_fetch(message)
            case Loaded():
                self._note_copied(message)
            case Published(at_ns):
                self._note_published(at_ns)
            case LoadPattern(pattern, done):
                self._load(pattern, done)
            case PreloadPattern(pattern, preloaded):
                self._preload(pattern, preloaded)
            case UnloadPattern(pattern_id):
                self._unload(pattern_id)
            case Drain(drained):
                self.draining = True
                self._drains.append(drained)
                self._tell_drained()
            case Look(looked):
                looked.set_result((self._residency(), self._stats))
            case CheckBytes(checked):
                self._checks.append(checked)
                self._engine.post(Check())
            case Checked(error):
                self._note_checked(error)
            case Ended(error):
                raise EngineEnded(error)
            case Close():
                self._closing = True

    # Requests.

    def _generate(self, entry: Entry) -> None:
        try:
            self._admit(entry)
            group = self._groups.find(entry.pattern)
        except PremoeError as error:
            entry.ended = True
            self._deliver(entry, TokenEvent((), "", error=error))
            return
        self._entries[entry.id] = entry
        group.entries[entry.id] = entry
        self.unfinished = len(self._entries)
        self._enter(group)

    def _admit(self, entry: Entry) -> None:
        if self.draining:
            raise draining()
        if entry.id in self._entries:
            raise Conflict(f"request id {entry.id!r} is in use", reason="REQUEST_ID_IN_USE")
        if len(self._entries) - self._last.running >= self._max_waiting:
            raise queue_full(self._max_waiting)

    def _enter(self, group: Group) -> None:
        """Run what is new in the group if its experts are there, else let it wait for its turn."""
        if group.state is State.RESTING:
            ready = group.row_written and not self._ledger.lacks(group.experts)
            self._groups.step(group, Step.FOUND if ready else Step.ASKED)
            self._dirty = True
            if ready:
                self._ledger.touch(group.experts)
        if group.state is State.RUNNING:
            report = SwapReport(generation=self._ledger.generation)
            for entry in [entry for entry in group.entries.values() if not entry.submitted]:
                self._announce(entry, report)
                self._submit(group, entry)
            for done in group.loads:
                done.set_result(report)
            group.loads = []
            self._leave(group)

    def _submit(self, group: Group, entry: Entry) -> None:
        asked = entry.request
        assert group.row is not None, "a running pattern has a mask row"
        entry.submitted = True
        request = SequenceRequest(
            request_id=entry.id,
            token_ids=asked.token_ids,
            pattern_row=group.row,
            active=asked.active,
            sampling=asked.sampling,
            kv_key=kv_key(group.key, asked.active, self._weights_id, asked.salt),
        )
        self._engine.post(Submit(request))

    def _cancel(self, entry: Entry) -> None:
        if entry.submitted:
            self._engine.post(Cancel(frozenset({entry.id})))
        elif not entry.ended:
            self._free(entry, TokenEvent((), "", finish="cancelled"))

    def _note_step(self, report: StepReport) -> None:
        self._last = report
        for request_id, event in report.events:
            entry = self._entries.get(request_id)
            if entry is None:
                continue
            if event.last:
                self._free(entry, event if entry.error is None else replace(event, finish=None, error=entry.error))
            else:
                self._deliver(entry, event)

    def _free(self, entry: Entry, event: TokenEvent) -> None:
        """The one way out of a request: nothing of it is left but its last event."""
        entry.ended = True
        del self._entries[entry.id]
        self.unfinished = len(self._entries)
        group = self._groups.holder(entry)
        if group is not None:
            del group.entries[entry.id]
            self._leave(group)
        self._deliver(entry, event)
        self._tell_drained()

    def _leave(self, group: Group) -> None:
        """A group that nobody wants any more rests; its experts are no longer pinned, what it waited for is dropped."""
        if group.wanted:
            return
        if self._swap is not None and self._swap.group is group:
            # Its copy ends first; see ``_advance``.
            self._advance()
            return
        self._let_host_go(group)
        if group.state is not State.RESTING:
            self._groups.step(group, Step.LEFT)
            self._dirty = True

    def _announce(self, entry: Entry, report: SwapReport) -> None:
        if not entry.started and not entry.ended:
            entry.started = True
            self._guarded(entry, lambda: entry.on_started(report))

    def _deliver(self, entry: Entry, event: TokenEvent) -> None:
        self._guarded(entry, lambda: entry.on_event(event))

    def _guarded(self, entry: Entry, tell: Any) -> None:
        try:
            tell()
        except Exception:
            logger.exception("the receiver of request %s failed; cancelling it", entry.id)
            if not entry.ended:
                self._inbox.put(CancelRequest(entry))

    # What waiting patterns lack.

    def _needs(self) -> list[Need]:
        return [group.need for group in self._in_need()] + [stock.need for stock in self._stocks]

    def _in_need(self) -> list[Group]:
        """Patterns that wait for blobs, the one whose turn it is first, then by age."""
        return self._groups.in_state(State.LOADING) + self._groups.in_state(State.WAITING)

    def _is_needed(self, need: Need) -> bool:
        return any(need is other for other in self._needs())

    def _fetch_for_waiting(self) -> None:
        now = time.monotonic()
        first = True
        for group in self._in_need():
            lacking = self._ledger.lacks(group.experts)
            if self._swap is not None and self._swap.group is group:
                lacking = [expert for expert in self._swap.pending if expert not in self._copying()]
            if first and len(lacking) > len(group.need.held) + self._host.available:
                self._make_room(group)
            lead = next(iter(group.entries.values()), None)
            context = None if lead is None else lead.context
            self._fetches.update(group.need, lacking, first=first, context=context, now=now)
            first = first and group.need.ready
        for stock in list(self._stocks):
            lacking = [expert for expert in stock.need.experts if expert not in self._host]
            if not lacking:
                self._stocks.remove(stock)
                self._fetches.drop(stock.need)
                stock.done.set_result(stock.report)
            else:
                self._fetches.update(stock.need, lacking, first=first, context=None, now=now)
        self._advance()

    def _copying(self) -> frozenset[ExpertId]:
        return frozenset(load.expert for load in self._swap.copying) if self._swap is not None else frozenset()

    def _make_room(self, group: Group) -> None:
        """The tier is too small for everybody: younger ones fetch again later."""
        for other in self._groups.in_state(State.WAITING):
            if (group.state is State.LOADING or other.since > group.since) and other.need.fetch is None:
                self._fetches.let_go(other.need)
                other.need.ready = False

    def _note_fetch(self, message: FetchOver) -> None:
        self._dirty = True
        error = self._fetches.over(message, time.monotonic())
        if error is None:
            return
        need = message.fetch.need
        for group in self._in_need():
            if group.need is need:
                self._fail(group, error)
        for stock in [stock for stock in self._stocks if stock.need is need]:
            self._stocks.remove(stock)
            self._unload(stock.pattern_id)
            stock.done.set_exception(error)

    # Swaps.

    def _start_next(self) -> None:
        """Begin the next pattern's turn, if it is somebody's."""
        waiting = [group for group in self._groups.in_state(State.WAITING) if group.wanted and group.need.ready]
        if self._swap is not None or not waiting:
            return
        move = next_move(
            [contender(group) for group in self._groups.in_state(State.RUNNING)],
            [contender(group) for group in waiting],
            self._ledger.slots,
            steps=self._last.steps - self._turn_start,
            quantum=self._quantum,
        )
        if move.start is None:
            return
        for key in move.pause:
            self._pause(self._groups.get(key))
        self._begin(self._groups.get(move.start))

    def _pause(self, group: Group) -> None:
        self._engine.post(Pause(group.submitted()))
        self._groups.step(group, Step.PAUSED)
        self._stats = replace(self._stats, pauses=self._stats.pauses + 1)
        self._dirty = True
        try:
            self._host.pin(group.experts)
            group.pinned_in_host = True
        except Exhausted:
            logger.debug("host tier too small to keep pattern %s; it will be fetched again", group.pattern.id)

    def _begin(self, group: Group) -> None:
        start_ns = time.time_ns()
        self._groups.step(group, Step.STARTED)
        plan = self._ledger.plan(group.experts, self._groups.pinned())
        pending = {load.expert: load for load in plan.loads}
        phases = [SwapPhase("plan", start_ns, time.time_ns())]
        self._swap = Swap(group, self._groups.take_row(group), pending, len(pending), phases)
        self._dirty = True
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

    def _copy(self, swap: Swap, ready: list[PlannedLoad]) -> None:
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
        threads = copy_threads(self._last.running, len(os.sched_getaffinity(0)))
        swap.copying, swap.saving = tuple(ready), tuple(save.expert for save in saves)
        swap.evicted += len(victims)
        swap.posted_ns = time.time_ns()
        self._engine.post(Retire(victims))
        self._engine.post(Load(Copy(tuple(loads), tuple(saves), threads, self._copy_rate)))

    def _note_copied(self, message: Loaded) -> None:
        swap, copied = self._swap, message.copied
        assert swap is not None, "a copy belongs to the swap under way"
        entries = self._ledger.settle(swap.copying, copied.written, copied.torn)
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
        self._dirty = True
        self._publish(swap, entries)

    def _publish(self, swap: Swap, entries: tuple[LedgerEntry, ...]) -> None:
        """Enter what the slots hold; with the last of it the pattern's row, and its sequences run."""
        group = swap.group
        done = not swap.pending and swap.error is None and group.wanted
        row = MaskRow(swap.row, group.pattern.kept, group.pattern.semantics) if done else None
        swap.posted_ns = time.time_ns()
        self._publishing.append((swap, done))
        self._engine.post(Publish(entries, row))
        if not done:
            self._advance()
            return
        group.row_written = True
        self._swap = None
        self._groups.step(group, Step.PUBLISHED)
        self._ledger.touch(group.experts)
        swap.fetched, swap.fetch_ns = group.need.delivered, group.need.fetch_ns
        self._let_host_go(group)
        self._turn_start = self._last.steps
        self._engine.post(Resume(group.submitted()))
        swap.entries, swap.loads, group.loads = list(group.entries.values()), group.loads, []
        for entry in swap.entries:
            if not entry.submitted:
                self._submit(group, entry)

    def _note_published(self, at_ns: int) -> None:
        swap, done = self._publishing.popleft()
        swap.phases.append(SwapPhase("publish", swap.posted_ns, at_ns))
        if not done:
            return
        phases = [*([SwapPhase("fetch", *swap.fetch_ns)] if swap.fetched else []), *swap.phases]
        report = SwapReport(
            blobs=swap.blobs,
            bytes=swap.blobs * self._blob_bytes,
            evicted=swap.evicted,
            blobs_fetched=swap.fetched,
            bytes_fetched=swap.fetched * self._blob_bytes,
            generation=self._ledger.generation,
            phases=tuple(phases),
        )
        self._count(report)
        for entry in swap.entries:
            self._announce(entry, report)
            report = report.shared()
        for done_future in swap.loads:
            done_future.set_result(report)
            report = report.shared()
        self._leave(swap.group)

    def _give_up(self, swap: Swap) -> None:
        """Nothing is being copied: the swap ends, and what it brought so far stays."""
        self._swap = None
        group = swap.group
        self._groups.step(group, Step.FAILED)
        if swap.error is not None:
            self._fail(group, swap.error)
        else:
            self._leave(group)

    def _fail(self, group: Group, error: Exception) -> None:
        """A swap failed: everything under this pattern fails with it, everything else goes on."""
        swap = self._swap
        if swap is not None and swap.group is group:
            swap.error = error
            self._advance()
            return
        if not isinstance(error, PremoeError):
            logger.error("swapping in pattern %s failed", group.pattern.id, exc_info=error)
        self._stats = replace(self._stats, failed_swaps=self._stats.failed_swaps + 1)
        entries, loads = list(group.entries.values()), group.loads
        group.loads = []
        for entry in entries:
            entry.error = error
        self._engine.post(Cancel(group.submitted()))
        for done in loads:
            done.set_exception(error)
        for entry in entries:
            if not entry.submitted:
                self._free(entry, TokenEvent((), "", error=error))
        self._leave(group)

    def _let_host_go(self, group: Group) -> None:
        self._fetches.drop(group.need)
        if group.pinned_in_host:
            group.pinned_in_host = False
            self._host.unpin(group.experts)

    def _count(self, report: SwapReport) -> None:
        old = self._stats
        self._stats = replace(
            old,
            swaps=old.swaps + 1,
            blobs_loaded=old.blobs_loaded + report.blobs,
            bytes_loaded=old.bytes_loaded + report.bytes,
            bytes_fetched=old.bytes_fetched + report.bytes_fetched,
        )

    # Patterns ahead of requests.

    def _load(self, pattern: KeptPattern, done: Future[SwapReport]) -> None:
        try:
            if self.draining:
                raise draining()
            group = self._groups.find(pattern)
            if pattern.id not in self._loaded:
                self._host.pin(pattern.experts)
                self._loaded[pattern.id] = pattern.experts
        except PremoeError as error:
            done.set_exception(error)
            return
        swapped: Future[SwapReport] = Future()
        swapped.add_done_callback(lambda future: self._stock(pattern, future, done))
        group.loads.append(swapped)
        self._enter(group)

    def _stock(self, pattern: KeptPattern, swapped: Future[SwapReport], done: Future[SwapReport]) -> None:
        """The pattern is resident, or never will be."""
        if (error := swapped.exception()) is not None:
            self._unload(pattern.id)
            done.set_exception(error)
            return
        self._stocks.append(Stock(pattern.id, Need(pattern.experts), swapped.result(), done))
        self._dirty = True

    def _preload(self, pattern: KeptPattern, done: Future[SwapReport | None]) -> None:
        try:
            if self.draining:
                raise draining()
            if not self._has_room_beside_running(pattern):
                done.set_result(None)
                return
            group = self._groups.find(pattern)
        except PremoeError as error:
            done.set_exception(error)
            return
        group.loads.append(done)  # type: ignore[arg-type]  # it only ever gets a report
        self._enter(group)

    def _has_room_beside_running(self, pattern: KeptPattern) -> bool:
        """Whether nobody waits for a swap, and the pattern's experts fit into the slots beside those that run."""
        if self._groups.in_state(State.WAITING) or self._groups.in_state(State.LOADING):
            return False
        together = Counter(expert.layer for expert in self._groups.pinned() | pattern.experts)
        return all(together[layer] <= count for layer, count in enumerate(self._ledger.slots))

    def _unload(self, pattern_id: str) -> None:
        self._host.unpin(self._loaded.pop(pattern_id, frozenset()))

    # Questions, and the end.

    def _residency(self) -> Residency:
        running = self._groups.in_state(State.RUNNING)
        return Residency(
            generation=self._ledger.generation,
            slots=tuple(tuple(row) for row in self._ledger.table),
            device_bytes=sum(self._ledger.slots) * self._blob_bytes,
            host_bytes=self._host.arena.num_bytes,
            running=self._last.running,
            waiting=max(0, len(self._entries) - self._last.running),
            running_patterns=tuple(sorted({name for group in running for name in group.names()})),
            loaded_patterns=tuple(self._loaded),
        )

    def _note_checked(self, error: Exception | None) -> None:
        done = self._checks.popleft()
        try:
            if error is not None:
                raise error
            self._host.check_integrity()
        except Exception as found:
            done.set_exception(found)
        else:
            done.set_result(None)

    def _tell_drained(self) -> None:
        if not self._entries:
            for done in self._drains:
                done.set_result(None)
            self._drains = []

    def _end_everything(self, failure: BaseException | None) -> None:
        """Every request and every waiting action ends; nobody is left without an answer."""
        self._fetches.stop()
        self.draining = True
        stopping = Unavailable("the worker is stopping; use another one", reason="STOPPING")
        error = stopping if failure is None else Unavailable(f"serving ended: {failure}", reason="ENGINE_ENDED")
        waiting: list[Future[Any]] = [done for group in self._groups.groups() for done in group.loads]
        waiting += [done for swap, _ in self._publishing for done in swap.loads]
        waiting += [stock.done for stock in self._stocks] + list(self._checks)
        for done in waiting:
            done.set_exception(error)
        last = TokenEvent((), "", finish="cancelled") if failure is None else TokenEvent((), "", error=error)
        for entry in list(self._entries.values()):
            entry.ended = True
            self._deliver(entry, last)
        self._entries.clear()
        self.unfinished = 0
        self._tell_drained()
        self.refuse_the_rest(error)

    def refuse_the_rest(self, error: PremoeError) -> None:
        """Answer messages that came too late. Any thread, once the loop has ended."""
        while True:
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return
            match message:
                case Generate(entry):
                    entry.ended = True
                    self._deliver(entry, TokenEvent((), "", error=error))
                case LoadPattern(_, done) | PreloadPattern(_, done) | Look(done) | CheckBytes(done):
                    done.set_exception(error)
                case Drain(done):
                    done.set_result(None)
                case _:
                    pass


class EngineEnded(Exception):
    """The engine has ended, for this reason."""

    def __init__(self, reason: BaseException | None) -> None:
        super().__init__(f"{type(reason).__name__}: {reason}" if reason else "the engine was closed")
        self.reason = reason


def draining() -> PremoeError:
    return Unavailable("the worker takes no new requests: it is stopping; use another one", reason="DRAINING")


def queue_full(max_waiting: int) -> PremoeError:
    return Exhausted(f"{max_waiting} requests are waiting already; try again later", reason="QUEUE_FULL")


def contender(group: Group) -> Contender:
    return Contender(group.key, group.pattern.kept, group.since)


def copy_threads(running: int, cores: int) -> int:
    """Threads for a swap's copies: they compete with decoding for memory and cores, so one while anything runs."""
    return 1 if running else min(MAX_COPY_THREADS, cores)
