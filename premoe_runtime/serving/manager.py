"""The residency manager: admits requests with a pattern, swaps experts in, and takes nobody's experts away."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from premoe_runtime.engines.base import Engine, SequenceRequest, TokenEvent
from premoe_runtime.formats.errors import Conflict, Exhausted, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.bank import ExpertBank
from premoe_runtime.residency.plan import SwapPlan
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.residency.swap import prefetch
from premoe_runtime.serving.groups import GroupTable
from premoe_runtime.serving.requests import FULL, Entry, Group, KeptPattern, ManagedRequest, State
from premoe_runtime.serving.swapping import Swapper, SwapPhase, SwapReport
from premoe_runtime.serving.turns import DEFAULT_QUANTUM, WAIT, Contender, Move, experts_of, next_move

logger = logging.getLogger(__name__)

DEFAULT_MAX_WAITING = 256
_TURN_CHECK_SECONDS = 0.05
"""How often the end of a turn is looked for when no token tells of it (long prompts)."""


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


@dataclass(frozen=True, slots=True)
class ManagerStats:
    """Counters since start. ``bytes_loaded`` went into slots, ``bytes_fetched`` came from the source."""

    swaps: int = 0
    failed_swaps: int = 0
    blobs_loaded: int = 0
    bytes_loaded: int = 0
    bytes_fetched: int = 0
    pauses: int = 0


class Handle:
    """A request given to the manager."""

    def __init__(self, manager: ResidencyManager, entry: Entry) -> None:
        self._manager = manager
        self._entry = entry

    def cancel(self) -> None:
        """Stop it wherever it is: queued, in mid-swap or running. Its last event says ``cancelled``. Idempotent."""
        self._manager.cancel(self._entry)


class ResidencyManager:
    """Front of an engine and its expert bank; every method is safe from any thread.

    A pattern whose experts all fit beside the running ones is swapped in while those go on decoding; one that does not
    fit takes turns with them (``scheduling.next_move``). One thread carries out swaps, one at a time.
    ``copy_rate`` bounds background copies in bytes/s, so that they do not slow down decoding.
    """

    def __init__(
        self,
        engine: Engine,
        bank: ExpertBank,
        source: ExpertSource,
        *,
        quantum: int = DEFAULT_QUANTUM,
        max_waiting: int = DEFAULT_MAX_WAITING,
        copy_rate: float | None = None,
    ) -> None:
        self._engine, self._bank, self._source = engine, bank, source
        self._swapper = Swapper(engine, bank, source, bytes_per_second=copy_rate)
        self._quantum, self._max_waiting = quantum, max_waiting
        self._changed = threading.Condition(threading.RLock())
        self._groups = GroupTable(bank)
        self._loaded: dict[str, frozenset[ExpertId]] = {}
        self._turn_start = 0
        self._contended = False
        self._draining = self._closing = False
        self._stats = ManagerStats()
        self._thread = threading.Thread(target=self._loop, name="premoe-residency", daemon=True)
        self._thread.start()

    def generate(
        self,
        request: ManagedRequest,
        on_started: Callable[[SwapReport], None],
        on_event: Callable[[TokenEvent], None],
    ) -> Handle:
        """Queue a request. ``on_started`` is called once its experts are published, before any event.

        Callbacks come from the engine's or the manager's thread, or from this call, and must not block. Raises
        InvalidInput (prompt, sampling, pattern), Conflict (full model without slots for it, id in use), Exhausted
        (queue full, too many patterns), Unavailable (draining).
        """
        pattern = self._pattern(request)
        self._engine.check(sequence_request(request, row=0))
        with self._changed:
            self._admit(request)
            group = self._groups.find(pattern)
            entry = Entry(request, group, on_started, on_event)
            group.entries[request.request_id] = entry
            failed = self._enter(group)
        entry.announce()
        tell_failed(failed)
        return Handle(self, entry)

    def cancel(self, entry: Entry) -> None:
        with self._changed:
            if entry.done:
                return
            if entry.sequence is not None:
                entry.sequence.cancel()
                return
            self._forget(entry)
        entry.on_event(TokenEvent((), "", finish="cancelled"))

    def load_pattern(self, pattern: KeptPattern) -> SwapReport:
        """Make a pattern resident ahead of requests and pin its blobs in host memory; waits for its turn. Idempotent.

        Raises what ``generate`` raises for a pattern, Exhausted when the host tier is too small, and what fetching
        raises; the pin is then off again.
        """
        self._check_pattern(pattern)
        done: Future[SwapReport] = Future()
        experts = experts_of(pattern.kept)
        with self._changed:
            self._check_open()
            new = pattern.id not in self._loaded
            if new:
                self._bank.host.pin(experts)
                self._loaded[pattern.id] = experts
        try:
            with self._changed:
                group = self._groups.find(pattern)
                group.loads.append(done)
                failed = self._enter(group)
            tell_failed(failed)
            report = done.result()
            prefetch(self._bank, experts, self._source)
        except BaseException:
            if new:
                self.unload_pattern(pattern.id)
            raise
        return report

    def preload(self, pattern: KeptPattern) -> SwapReport | None:
        """Make a pattern resident while nobody needs the room: ``None`` when somebody does, else what it took.

        It comes in beside what runs; a request never waits for it to be asked for. A pattern that is resident already
        counts as used just now, so that others give way first. Raises what ``load_pattern`` raises, but for the pin.
        """
        self._check_pattern(pattern)
        done: Future[SwapReport] = Future()
        with self._changed:
            self._check_open()
            if not self._has_room_beside_running(pattern):
                return None
            group = self._groups.find(pattern)
            group.loads.append(done)
            failed = self._enter(group)
        tell_failed(failed)
        return done.result()

    def unload_pattern(self, pattern_id: str) -> None:
        """Take the pin off again; its blobs then go when room is needed. Does nothing for a pattern without a pin."""
        with self._changed:
            self._bank.host.unpin(self._loaded.pop(pattern_id, frozenset()))

    def drain(self, timeout: float) -> int:
        """Refuse new requests, wait up to ``timeout`` seconds for the others; how many were left then. Idempotent."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: not len(self._groups.entries()), timeout)
            return len(self._groups.entries())

    def residency(self) -> Residency:
        with self._changed:
            running, unfinished = self._engine.stats().running, len(self._groups.entries())
            return Residency(
                generation=self._bank.generation,
                slots=tuple(tuple(row) for row in self._bank.slot_table()),
                device_bytes=self._bank.device_bytes,
                host_bytes=self._bank.host_bytes,
                running=running,
                waiting=max(0, unfinished - running),
                running_patterns=tuple(
                    sorted({name for g in self._groups.in_state(State.RUNNING) for name in g.names()})
                ),
                loaded_patterns=tuple(self._loaded),
            )

    def stats(self) -> ManagerStats:
        with self._changed:
            return self._stats

    def close(self) -> None:
        """Cancel everything, stop the thread and close the engine."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._engine.close()
        with self._changed:
            left = self._groups.entries()
            loads = [load for group in self._groups.groups() for load in group.loads]
        for entry in left:
            self.cancel(entry)
        for load in loads:
            load.set_exception(Unavailable("the worker is stopping", reason="STOPPING"))

    # Admission. What changes state is called with the lock held.

    def _pattern(self, request: ManagedRequest) -> KeptPattern:
        if request.pattern == FULL:
            pattern = KeptPattern.full(self._bank.num_layers, self._bank.num_experts)
        else:
            pattern = request.pattern
        self._check_pattern(pattern)
        return pattern

    def _check_pattern(self, pattern: KeptPattern) -> None:
        pattern.check(num_layers=self._bank.num_layers, num_experts=self._bank.num_experts, slots=self._bank.slots)

    def _check_open(self) -> None:
        if self._closing or self._draining:
            raise Unavailable("the worker takes no new requests: it is stopping; use another one", reason="DRAINING")

    def _has_room_beside_running(self, pattern: KeptPattern) -> bool:
        """Whether nobody waits for a swap, and the pattern's experts fit into the slots beside those that run."""
        if self._groups.in_state(State.WAITING) or self._groups.in_state(State.LOADING):
            return False
        together = Counter(expert.layer for expert in self._groups.pinned() | experts_of(pattern.kept))
        return all(together[layer] <= count for layer, count in enumerate(self._bank.slots))

    def _admit(self, request: ManagedRequest) -> None:
        self._check_open()
        entries = self._groups.entries()
        if any(entry.request.request_id == request.request_id for entry in entries):
            raise Conflict(f"request id {request.request_id!r} is in use", reason="REQUEST_ID_IN_USE")
        if len(entries) - self._engine.stats().running >= self._max_waiting:
            raise Exhausted(f"{self._max_waiting} requests are waiting already; try again later", reason="QUEUE_FULL")

    def _enter(self, group: Group) -> list[Entry]:
        """Submit what is new in the group if its experts are there, else let it wait for its turn.

        Returns entries that the engine refused, to be told without the lock.
        """
        if group.state is State.IDLE and self._groups.ready(group):
            self._bank.touch(group.experts)
            self._groups.run(group)
        if group.state is State.RUNNING:
            return self._submit_all(group, SwapReport(generation=self._bank.generation))
        if group.state is State.IDLE:
            self._groups.wait(group)
            self._changed.notify_all()
        return []

    def _submit_all(self, group: Group, report: SwapReport) -> list[Entry]:
        """Submit the group's entries that are not yet; the first one takes the report. Returns those refused."""
        assert group.row is not None, "a running pattern has a mask row"
        failed = []
        for entry in [entry for entry in group.entries.values() if entry.sequence is None]:
            entry.report, report = report, report.shared()
            try:
                entry.sequence = self._engine.submit(
                    sequence_request(entry.request, group.row), partial(self._on_event, entry)
                )
            except Exception as error:
                entry.error = error
                failed.append(entry)
                self._forget(entry)
        loads, group.loads = group.loads, []
        for load in loads:
            load.set_result(report)
            report = report.shared()
        self._groups.settle(group)
        return failed

    def _forget(self, entry: Entry) -> None:
        entry.done = True
        entry.group.entries.pop(entry.request.request_id, None)
        self._groups.settle(entry.group)
        self._changed.notify_all()

    # Events, on the engine's thread.

    def _on_event(self, entry: Entry, event: TokenEvent) -> None:
        entry.announce()
        if event.last and entry.error is not None:
            event = replace(event, finish=None, error=entry.error)
        try:
            entry.on_event(event)
        finally:
            if event.last:
                with self._changed:
                    self._forget(entry)
            elif self._contended and self._turn_steps() >= self._quantum:
                with self._changed:
                    self._changed.notify_all()

    def _turn_steps(self) -> int:
        return self._engine.stats().steps - self._turn_start

    # Swaps, on the manager's thread.

    def _loop(self) -> None:
        while True:
            with self._changed:
                move = self._next_move()
                while move == WAIT and not self._closing:
                    self._changed.wait(_TURN_CHECK_SECONDS if self._contended else None)
                    move = self._next_move()
                if self._closing:
                    return
            try:
                self._carry_out(move)
            except Exception:
                # One request's trouble must not end the thread that serves all.
                logger.exception("a swap ended in an unforeseen error")

    def _next_move(self) -> Move:
        running = self._groups.in_state(State.RUNNING)
        waiting = [group for group in self._groups.in_state(State.WAITING) if group.wanted]
        self._contended = bool(running and waiting)
        return next_move(
            [contender(group) for group in running],
            [contender(group) for group in waiting],
            self._bank.slots,
            steps=self._turn_steps(),
            quantum=self._quantum,
        )

    def _carry_out(self, move: Move) -> None:
        started_ns = time.time_ns()
        with self._changed:
            group = next((g for g in self._groups.in_state(State.WAITING) if g.key == move.start), None)
            if group is None:
                return
            for key in move.pause:
                self._pause(self._groups.get(key))
            group.state = State.LOADING
            pinned = self._groups.pinned()
            lead = next(iter(group.entries.values()), None)
            try:
                row = self._groups.take_row(group)
                plan = self._bank.plan(group.experts, pinned)
            except Exception as error:
                failure: Exception | None = error
            else:
                failure = None
                self._groups.victims = plan.victims
        if failure is not None:
            self._fail(group, failure)
            return
        planned = SwapPhase("plan", started_ns, time.time_ns())
        # Always inside the context of the request that waits longest: the source opens its spans there.
        run = lead.context.run if lead is not None else _call
        try:
            report = run(lambda: self._swap(group, plan, row, pinned, planned))
        except Exception as error:
            self._fail(group, error)
        else:
            self._publish(group, report)

    def _swap(
        self, group: Group, plan: SwapPlan, row: int, pinned: frozenset[ExpertId], planned: SwapPhase
    ) -> SwapReport | None:
        return self._swapper.run(
            plan,
            row,
            group.pattern.kept,
            group.pattern.semantics,
            pinned=pinned,
            cancelled=lambda: self._closing or not group.wanted,
            planned=planned,
        )

    def _pause(self, group: Group) -> None:
        self._engine.pause(group.submitted_ids())
        self._stats = replace(self._stats, pauses=self._stats.pauses + 1)
        self._groups.wait(group)
        self._groups.keep_in_host(group)

    def _publish(self, group: Group, report: SwapReport | None) -> None:
        """The swap is through (or was cancelled: no report): let the group's sequences run."""
        with self._changed:
            if report is None:
                self._groups.give_up(group)
                self._groups.settle(group)
                self._changed.notify_all()
                return
            group.row_written = True
            self._groups.victims = frozenset()
            self._groups.run(group)
            self._turn_start = self._engine.stats().steps
            self._count(report)
            self._engine.resume(group.submitted_ids())
            entries = list(group.entries.values())
            failed = self._submit_all(group, report)
        for entry in entries:
            entry.announce()
        tell_failed(failed)

    def _fail(self, group: Group, error: Exception) -> None:
        """The swap failed: everything under this pattern fails with it, everything else goes on."""
        if not isinstance(error, PremoeError):
            logger.error("swapping in pattern %s failed", group.pattern.id, exc_info=error)
        with self._changed:
            self._groups.give_up(group)
            self._stats = replace(self._stats, failed_swaps=self._stats.failed_swaps + 1)
            queued = [entry for entry in group.entries.values() if entry.sequence is None]
            for entry in group.entries.values():
                entry.error = error
                if entry.sequence is not None:
                    entry.sequence.cancel()
            loads, group.loads = group.loads, []
            for entry in queued:
                self._forget(entry)
            self._groups.settle(group)
        for load in loads:
            load.set_exception(error)
        tell_failed(queued)

    def _count(self, report: SwapReport) -> None:
        old = self._stats
        self._stats = replace(
            old,
            swaps=old.swaps + 1,
            blobs_loaded=old.blobs_loaded + report.blobs,
            bytes_loaded=old.bytes_loaded + report.bytes,
            bytes_fetched=old.bytes_fetched + report.bytes_fetched,
        )


def _call(action: Callable[[], SwapReport | None]) -> SwapReport | None:
    return action()


def tell_failed(entries: list[Entry]) -> None:
    """Give requests that were never submitted their last event. Called without the lock."""
    for entry in entries:
        entry.on_event(TokenEvent((), "", error=entry.error))


def contender(group: Group) -> Contender:
    return Contender(group.key, group.pattern.kept, group.since)


def sequence_request(request: ManagedRequest, row: int) -> SequenceRequest:
    return SequenceRequest(
        request_id=request.request_id,
        token_ids=request.token_ids,
        pattern_row=row,
        active=request.active,
        sampling=request.sampling,
    )
