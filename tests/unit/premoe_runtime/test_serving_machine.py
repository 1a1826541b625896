"""The serving loop, stepped by hand: requests end, are cancelled and come between every two things that can happen.

The engine is a scripted one that carries commands out in order and checks what no engine may ever be asked: a step with
an expert that is not in its slot, a copy into a slot that the tables name, a row that nobody wrote.
"""

from __future__ import annotations

import contextvars
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.engines import kept_table

from premoe_runtime.engines.base import (
    Cancel,
    Check,
    Command,
    Load,
    Loaded,
    Pause,
    Publish,
    Published,
    Report,
    RequestLimits,
    Resume,
    Retire,
    StepReport,
    StopLoad,
    Submit,
    TokenEvent,
)
from premoe_runtime.formats.errors import CorruptData, Exhausted, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import Copied, Copy
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import HostTier
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.serving.admission import Admission
from premoe_runtime.serving.fetches import Fetches
from premoe_runtime.serving.groups import State
from premoe_runtime.serving.inbox import Inbox
from premoe_runtime.serving.loop import ServingLoop
from premoe_runtime.serving.messages import (
    CancelRequest,
    Drain,
    Generate,
    LoadPattern,
    PreloadPattern,
    UnloadPattern,
)
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import KeptPattern, OpenRequest, Request

EXPERTS, SLOTS, ROWS, HOST_BLOBS = 16, (5, 4), 4, 9
PATTERNS = [
    KeptPattern(
        f"p{i}", kept_table([[(3 * i + j) % EXPERTS for j in range(3)], [(2 * i + j) % EXPERTS for j in range(2)]])
    )
    for i in range(6)
]
MAX_WAITING = 6
QUANTUM = 2


@dataclass
class ScriptedEngine:
    """Carries out commands when told to. ``outcome`` decides what becomes of the next copy."""

    post_report: Callable[[Report], None]
    inbox: deque[Command] = field(default_factory=deque)
    slots: dict[tuple[int, int], ExpertId] = field(default_factory=dict)
    bytes: dict[tuple[int, int], ExpertId | None] = field(default_factory=dict)
    rows: dict[int, frozenset[ExpertId]] = field(default_factory=dict)
    sequences: dict[str, Submit] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    compiling: set[str] = field(default_factory=set)
    compiled: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    copy: Copy | None = None
    stop: bool = False
    steps: int = 0
    limits: ClassVar[RequestLimits] = RequestLimits(context=100, vocabulary=100, top_k=4)

    def start(self, report: Callable[[Report], None]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def post(self, command: Command) -> None:
        if isinstance(command, StopLoad):
            self.stop = True
        else:
            self.inbox.append(command)

    def boundary(self) -> None:
        events: list[tuple[str, TokenEvent]] = []
        while self.inbox:
            self._carry_out(self.inbox.popleft(), events)
        self._report(events)

    def _carry_out(self, command: Command, events: list[tuple[str, TokenEvent]]) -> None:
        match command:
            case Submit(request_id):
                assert request_id not in self.sequences
                assert command.kv_key
                self.sequences[request_id] = command
                if command.grammar:
                    self.compiling.add(request_id)
            case Cancel(ids):
                for request_id in ids & self.sequences.keys():
                    events.append((request_id, TokenEvent(finish="cancelled")))
                    self._forget(request_id)
            case Pause(ids):
                self.paused |= ids & self.sequences.keys()
            case Resume(ids):
                self.paused -= ids
            case Retire(experts):
                for expert in experts:
                    del self.slots[self._slot(expert)]
            case Load(copy):
                assert self.copy is None, "one copy at a time"
                for blob in copy.loads:
                    assert (blob.expert.layer, blob.slot) not in self.slots, "a published slot is never written"
                self.copy = copy
            case Publish(placements, row):
                for expert, slot in placements:
                    assert self.bytes[expert.layer, slot] == expert, "a slot holds what the tables say"
                    assert (expert.layer, slot) not in self.slots
                    self.slots[expert.layer, slot] = expert
                if row is not None:
                    kept = {ExpertId(*pair) for pair in np.argwhere(row.kept).tolist()}
                    assert kept <= set(self.slots.values())
                    self.rows[row.row] = frozenset(kept)
                self.post_report(Published(1))
            case Check() | StopLoad():
                raise AssertionError(command)

    def step(self, ends: bool) -> None:
        """One token for every sequence that runs; the first of them may end."""
        running = [self.sequences[key] for key in self._running()]
        if not running:
            return
        self.steps += 1
        events: list[tuple[str, TokenEvent]] = []
        there = set(self.slots.values())
        for request in running:
            assert self.rows[request.pattern_row] <= there, "a step found an expert absent"
            self.tokens[request.request_id] = self.tokens.get(request.request_id, 0) + 1
            last = ends and request is running[0]
            events.append((request.request_id, TokenEvent((1,), "x", finish="length" if last else None)))
            if last:
                self._forget(request.request_id)
        self._report(events)

    def compile(self, number: int) -> None:
        """One of the grammars that sequences wait for is there."""
        if self.compiling:
            done = sorted(self.compiling)[number % len(self.compiling)]
            self.compiling.remove(done)
            self.compiled.append(done)
            self._report([])

    def end_copy(self, written: int, torn: bool) -> None:
        if self.copy is None:
            return
        copy, self.copy = self.copy, None
        done = len(copy.loads) if not self.stop else min(written, len(copy.loads))
        self.stop = False
        for blob in copy.loads[:done]:
            self.bytes[blob.expert.layer, blob.slot] = blob.expert
        broken = {blob.expert for blob in copy.loads[done : done + 1]} if torn else set()
        for blob in copy.loads[done : done + len(broken)]:
            self.bytes[blob.expert.layer, blob.slot] = None
        error = RuntimeError("the device copied half") if broken else None
        saved = {} if broken else {blob.expert: "digest" for blob in copy.saves}
        written_set = frozenset(blob.expert for blob in copy.loads[:done])
        self.post_report(Loaded(Copied(written_set, frozenset(broken), saved, 1, 2, error), 1))

    def _slot(self, expert: ExpertId) -> tuple[int, int]:
        return next(place for place, held in self.slots.items() if held == expert)

    def _forget(self, request_id: str) -> None:
        del self.sequences[request_id]
        self.paused.discard(request_id)
        self.compiling.discard(request_id)

    def _running(self) -> list[str]:
        return [key for key in self.sequences if key not in self.paused | self.compiling]

    def _report(self, events: list[tuple[str, TokenEvent]]) -> None:
        running, waiting = len(self._running()), len(self.sequences) - len(self._running())
        compiled, self.compiled = tuple(self.compiled), []
        self.post_report(StepReport(self.steps, running, waiting, events=tuple(events), compiled=compiled))


@dataclass
class Asked:
    """A request and what its owner was told."""

    request: OpenRequest
    started: list[SwapReport] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)

    def on_event(self, event: TokenEvent) -> None:
        assert not self.ended, "an event came after the last one"
        assert self.started or event.last, "a token came before the report"
        self.events.append(event)

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].last


@dataclass
class ScriptedFetcher:
    """Delivers, or fails, as the machine says."""

    outcome: PremoeError | None = None

    def fetch(
        self,
        places: dict[ExpertId, int],
        delivered: Callable[[ExpertId, str], None],
        cancelled: Callable[[], bool],
        urgent: Callable[[], bool],
    ) -> None:
        for index, expert in enumerate(list(places)):
            if cancelled():
                return
            if self.outcome is not None and index == len(places) // 2:
                raise self.outcome
            delivered(expert, "digest")


class ServingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.inbox = Inbox()
        self.admission = Admission(MAX_WAITING)
        self.engine = ScriptedEngine(self.inbox.post)
        self.fetcher = ScriptedFetcher()
        self.fetches: deque[Callable[[], None]] = deque()
        self.host = HostTier(HostArena(64, HOST_BLOBS * 64))
        self.ledger = Ledger(SLOTS, (EXPERTS,) * len(SLOTS))
        self.loop = ServingLoop(
            self.engine,
            self.ledger,
            Fetches(self.host, self.fetcher, self.inbox.post, (0.0, 0.0), spawn=self.fetches.append),  # type: ignore[arg-type]
            self.inbox,
            self.admission,
            max_rows=ROWS,
            weights_id="w",
            blob_bytes=64,
            quantum=QUANTUM,
            copy_rate=None,
        )
        self.asked: list[Asked] = []
        self.futures: list[Future[SwapReport] | Future[SwapReport | None]] = []

    def turn(self) -> None:
        """What one turn of the loop does, without a thread."""
        for message in self.inbox.heard(0):
            self.loop.note(message)
        self.loop._patterns.note_changed()  # any retry is due
        self.loop.decide(time.monotonic() + 1)

    @rule(
        pattern=st.integers(0, len(PATTERNS) - 1),
        grammar=st.sampled_from(["", "", "g"]),
        priority=st.sampled_from([0, 0, 1, 2]),
    )
    def ask(self, pattern: int, grammar: str, priority: int) -> None:
        try:
            place = self.admission.enter()
        except Exhausted:
            assert self.loop.unfinished >= MAX_WAITING
            return
        request = Request(f"r{len(self.asked)}", PATTERNS[pattern], 1, (1, 2), grammar=grammar, priority=priority)
        asked = Asked(OpenRequest(request, lambda report: None, lambda event: None, contextvars.Context(), place))
        asked.request.on_started, asked.request.on_event = asked.started.append, asked.on_event
        self.asked.append(asked)
        self.inbox.post(Generate(asked.request))
        self.turn()

    @rule(index=st.integers(0, 99), heard=st.booleans())
    def cancel(self, index: int, heard: bool) -> None:
        """Cancel one; the loop may hear of it only together with what comes next."""
        if self.asked:
            self.inbox.post(CancelRequest(self.asked[index % len(self.asked)].request))
            if heard:
                self.turn()

    @rule(heard=st.booleans())
    def boundary(self, heard: bool) -> None:
        self.engine.boundary()
        if heard:
            self.turn()

    @rule(ends=st.booleans(), heard=st.booleans())
    def step(self, ends: bool, heard: bool) -> None:
        self.engine.boundary()
        self.engine.step(ends)
        if heard:
            self.turn()

    @rule(number=st.integers(0, 9), heard=st.booleans())
    def compile(self, number: int, heard: bool) -> None:
        self.engine.compile(number)
        if heard:
            self.turn()

    @rule(
        index=st.integers(0, 9), outcome=st.sampled_from([None, None, Unavailable("store down"), CorruptData("bytes")])
    )
    def fetch(self, index: int, outcome: PremoeError | None) -> None:
        if self.fetches:
            self.fetches.rotate(-index)
            self.fetcher.outcome = outcome
            self.fetches.popleft()()
            self.turn()

    @rule(written=st.integers(0, 6), torn=st.booleans())
    def end_copy(self, written: int, torn: bool) -> None:
        self.engine.end_copy(written, torn and self.engine.stop)
        self.turn()

    @rule(pattern=st.integers(0, len(PATTERNS) - 1), pin=st.booleans())
    def load(self, pattern: int, pin: bool) -> None:
        done: Future[SwapReport] = Future()
        preloaded: Future[SwapReport | None] = Future()
        self.futures.append(done if pin else preloaded)
        self.inbox.post(LoadPattern(PATTERNS[pattern], done) if pin else PreloadPattern(PATTERNS[pattern], preloaded))
        self.turn()

    @rule(pattern=st.integers(0, len(PATTERNS) - 1))
    def unload(self, pattern: int) -> None:
        self.inbox.post(UnloadPattern(PATTERNS[pattern].id))
        self.turn()

    @invariant()
    def what_runs_is_there(self) -> None:
        patterns = self.loop._patterns
        pinned = patterns._groups.pinned()
        assert pinned <= self.ledger.resident()
        rows = [group.row for group in patterns._groups.groups() if group.row is not None]
        assert len(rows) == len(set(rows))
        assert len(patterns._groups.groups()) <= 2 * ROWS
        assert self.loop.unfinished == sum(not asked.ended for asked in self.asked if asked.request.id in self._known())

    def _known(self) -> set[str]:
        return set(self.loop._requests._open)

    def teardown(self) -> None:
        """Whatever happened: with a source and an engine that work, everybody comes to an end and nothing is left."""
        self.fetcher.outcome = None
        drained: Future[None] = Future()
        self.inbox.post(Drain(drained))
        for _ in range(400):
            self.turn()
            while self.fetches:
                self.fetches.popleft()()
                self.turn()
            self.engine.boundary()
            self.engine.end_copy(99, False)
            self.turn()
            self.engine.boundary()
            self.engine.compile(0)
            self.engine.step(True)
            self.turn()
            answered = drained.done() and all(future.done() for future in self.futures)
            if answered and not self.engine.inbox and self.engine.copy is None and self._resting():
                break
        assert drained.done(), "some request never ended"
        assert all(asked.ended for asked in self.asked)
        assert all(future.done() for future in self.futures)
        assert self._resting()
        assert self.admission.waiting == self.admission._inside == 0
        for pattern in PATTERNS:
            self.inbox.post(UnloadPattern(pattern.id))
        self.turn()
        assert not self.host._held
        assert not self.host._pins
        assert not self.host._filling
        assert set(self.engine.slots.values()) == self.ledger.resident()
        for asked in self.asked:
            error = asked.events[-1].error
            assert error is None or isinstance(error, Unavailable | CorruptData | Exhausted | RuntimeError)

    def _resting(self) -> bool:
        return all(group.state is State.RESTING for group in self.loop._patterns._groups.groups())


ServingMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestServingMachine = pytest.mark.timeout(900)(pytest.mark.slow(ServingMachine.TestCase))
