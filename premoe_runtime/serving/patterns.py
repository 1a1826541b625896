"""Patterns on their way into the slots: what waiting ones lack, and whose turn it is."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import Future

from premoe_runtime.engines.base import Engine, Loaded, Pause, Resume
from premoe_runtime.formats.errors import Exhausted, PremoeError
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.serving.fetches import Delivered, Fetches, FetchOver, Need
from premoe_runtime.serving.groups import Group, GroupTable, State, Step
from premoe_runtime.serving.open_requests import OpenRequests
from premoe_runtime.serving.reports import ServingStats, SwapReport
from premoe_runtime.serving.requests import KeptPattern
from premoe_runtime.serving.swap import Swap, Swaps
from premoe_runtime.serving.turns import Contender, next_move

logger = logging.getLogger(__name__)


class Patterns:
    """Moves groups through their states (``groups.TRANSITIONS``). Owned by the serving loop.

    What a waiting pattern lacks is fetched into host memory while others run. Once it is there and the pattern's turn
    has come, it is swapped in (``Swaps``), and what waits under it runs.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        fetches: Fetches,
        requests: OpenRequests,
        groups: GroupTable,
        *,
        blob_bytes: int,
        quantum: int,
        copy_rate: float | None,
    ) -> None:
        self._engine, self._ledger, self._fetches = engine, ledger, fetches
        self._host = fetches.host
        self._requests, self._groups = requests, groups
        self._blob_bytes, self._quantum = blob_bytes, quantum
        self._swaps = Swaps(engine, ledger, fetches, groups, requests, copy_rate=copy_rate)
        self._turn_start = 0
        self._changed = True
        """Whether what waiting patterns lack may have changed since it was last looked at."""
        self.stats = ServingStats()

    # What is asked.

    def enter(self, group: Group) -> None:
        """Run what is new in the group if its experts are there, else let it wait for its turn."""
        if group.state is State.RESTING:
            ready = group.row_written and not self._ledger.lacks(group.experts) and not self._swaps.takes_from(group)
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
        if self._swaps.of(group) is not None:
            # Its copy ends first.
            self._advance()
            return
        self._fetches.drop(group.need)
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
        return waiting + self._swaps.unanswered()

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
        over = self._swaps.note_copied(message)
        self._changed = True
        self._end(over)

    def note_published(self, at_ns: int) -> None:
        """Its requests run since the row was posted; now it is known what that took."""
        swap = self._swaps.note_published(at_ns)
        if swap is None:
            return
        report = swap.report(self._blob_bytes, self._ledger.generation)
        self.stats.count(report)
        report = self._requests.announce(swap.requests, report)
        for load in swap.loads:
            load.set_result(report)
            report = report.shared()
        self.leave(swap.group)

    # Decisions.

    def fetch_what_is_lacking(self, now: float) -> None:
        """Fetch for all waiting patterns, in the order of their turns, as far as host memory goes."""
        if not self._changed:
            return
        self._changed = False
        first = True
        for group in sorted(self._in_need(), key=_rank):
            lacking = self._swaps.lacking(group)
            self._fetches.let_go(group.need, self._swaps.needless(group))
            if first and len(lacking) > len(group.need.held) + self._host.available:
                self._make_room(group)
            lead = next(iter(group.requests.values()), None)
            context = None if lead is None else lead.context
            self._fetches.update(group.need, lacking, first=first, context=context, now=now)
            first = first and group.need.ready
        self._advance()

    def start_next(self) -> None:
        """Begin the next pattern's turn, if it is somebody's."""
        if self._swaps.current is not None:
            return
        waiting = [
            group
            for group in self._groups.in_state(State.WAITING)
            if group.wanted and group.need.ready and not group.idle
        ]
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
            group = self._groups.get(move.start)
            self._step(group, Step.STARTED)
            self._swaps.begin(group)
            self._advance()

    def needs(self) -> list[Need]:
        """What waiting patterns need."""
        return [group.need for group in self._in_need()]

    def _step(self, group: Group, step: Step) -> None:
        self._groups.step(group, step)
        self._changed = True

    def _in_need(self) -> list[Group]:
        """Patterns that wait for blobs, the one whose turn it is first."""
        return self._groups.in_state(State.LOADING) + self._groups.in_state(State.WAITING)

    def _make_room(self, group: Group) -> None:
        """The tier is too small for everybody: those behind it fetch again later."""
        rank = _rank(group)
        for other in self._groups.in_state(State.WAITING):
            if _rank(other) > rank and other.need.fetch is None:
                self._fetches.let_go(other.need)
                other.need.ready = False

    def _pause(self, group: Group) -> None:
        self._engine.post(Pause(group.submitted()))
        self._step(group, Step.PAUSED)
        self.stats.pauses += 1
        try:
            self._fetches.pin(group.need)
        except Exhausted:
            logger.debug("host tier too small to keep pattern %s; it will be fetched again", group.pattern.id)

    def _advance(self) -> None:
        self._end(self._swaps.advance())

    def _end(self, swap: Swap | None) -> None:
        """A swap that is over: what waits under its pattern runs, or fails, or is gone."""
        if swap is None:
            return
        if swap.published:
            self._run(swap)
            return
        self._step(swap.group, Step.FAILED)
        if swap.error is not None:
            self._fail(swap.group, swap.error)
        else:
            self.leave(swap.group)

    def _run(self, swap: Swap) -> None:
        """The pattern's experts and row are posted: its sequences may follow."""
        group = swap.group
        group.row_written = True
        self._step(group, Step.PUBLISHED)
        self._ledger.touch(group.experts)
        swap.fetched, swap.fetch_ns = group.need.delivered, group.need.fetch_ns
        self._fetches.drop(group.need)
        self._turn_start = self._requests.last.steps
        self._engine.post(Resume(group.submitted()))
        swap.requests, swap.loads, group.loads = list(group.requests.values()), group.loads, []
        for request in swap.requests:
            if not request.submitted:
                self._requests.submit(group, request)

    def _fail(self, group: Group, error: Exception) -> None:
        """A swap failed: everything under this pattern fails with it, everything else goes on."""
        if (swap := self._swaps.of(group)) is not None:
            swap.error = error
            self._advance()
            return
        if not isinstance(error, PremoeError):
            logger.error("swapping in pattern %s failed", group.pattern.id, exc_info=error)
        self.stats.failed_swaps += 1
        loads, group.loads = group.loads, []
        for done in loads:
            done.set_exception(error)
        self._requests.fail(group, error)
        self.leave(group)


def contender(group: Group) -> Contender:
    return Contender(group.key, group.pattern.kept, group.since, group.idle, group.priority)


def _rank(group: Group) -> tuple[bool, int, int]:
    """Whose turn it is first, then as they wait for theirs."""
    return (group.state is not State.LOADING, *contender(group).rank)
