"""Turns of patterns: whole runs of a simulated worker, whatever the patterns, arrivals and lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.serving.turns import (
    WAIT,
    Contender,
    KeptTable,
    Move,
    experts_of,
    kv_key,
    next_move,
    pattern_key,
    union_fits,
)

LAYERS, EXPERTS = 2, 8


def table(*layers: tuple[int, ...]) -> KeptTable:
    kept = np.zeros((len(layers), EXPERTS), dtype=np.bool_)
    for layer, experts in enumerate(layers):
        kept[layer, list(experts)] = True
    return kept


A, B, C = table((0, 1), (0, 1)), table((2, 3), (2, 3)), table((0, 2), (0, 2))


def contenders(**tables: tuple[KeptTable, int]) -> list[Contender]:
    return [Contender(key, kept, since) for key, (kept, since) in tables.items()]


def test_a_union_fits_when_its_widest_layer_does() -> None:
    assert union_fits([A, B], (4, 4))
    assert not union_fits([A, B], (3, 3))
    assert union_fits([A, C], (3, 3))
    assert not union_fits([table((0,), (0, 1, 2))], (2, 2))
    assert union_fits([], (0, 0))


def test_patterns_that_fit_together_join_without_a_pause() -> None:
    assert next_move(contenders(a=(A, 1)), contenders(b=(B, 2)), (4, 4), steps=0) == Move("b")


def test_the_narrow_layer_decides_whether_patterns_fit_together() -> None:
    assert union_fits([A, B], (4, 4))
    assert not union_fits([A, B], (8, 3))
    assert not union_fits([A, B], (3, 8))


def test_a_turn_is_not_cut_short() -> None:
    running, waiting = contenders(a=(A, 1)), contenders(b=(B, 2))
    assert next_move(running, waiting, (3, 3), steps=15, quantum=16) == WAIT
    assert next_move(running, waiting, (3, 3), steps=16, quantum=16) == Move("b", ("a",))


def test_who_fits_beside_the_next_one_stays() -> None:
    running = contenders(a=(A, 1), d=(table((2,), (3,)), 2))
    assert next_move(running, contenders(b=(B, 3)), (3, 3), steps=99) == Move("b", ("a",))


def test_nobody_overtakes_the_head_of_the_queue() -> None:
    waiting = contenders(c=(C, 3), b=(B, 2))
    assert next_move(contenders(a=(A, 1)), waiting, (3, 3), steps=0) == WAIT
    assert next_move(contenders(a=(A, 1)), waiting, (3, 3), steps=99).start == "b"


def test_who_only_waits_for_something_else_keeps_no_turn() -> None:
    idle = Contender("a", A, 1, idle=True)
    assert next_move([idle], contenders(b=(B, 2)), (3, 3), steps=0) == Move("b", ("a",))
    assert next_move([idle], contenders(b=(B, 2)), (4, 4), steps=0) == Move("b")
    assert next_move([idle], [], (3, 3), steps=0) == WAIT


def test_the_turns_of_others_are_not_cut_short_beside_one_that_is_idle() -> None:
    idle, small = Contender("a", A, 1, idle=True), table((2,), (3,))
    running = [idle, *contenders(d=(small, 2))]
    assert next_move(running, contenders(b=(B, 3)), (3, 3), steps=0) == Move("b", ("a",))
    assert next_move([idle, *contenders(d=(B, 2))], contenders(c=(C, 3)), (3, 3), steps=0) == Move("c", ("a",))
    assert next_move([idle, *contenders(d=(B, 2))], contenders(c=(C, 3)), (2, 2), steps=0) == WAIT


def test_who_steps_back_has_no_turn_while_others_need_the_slots() -> None:
    background, urgent = Contender("A", A, 1, priority=5), Contender("B", B, 2)
    assert next_move([urgent], [background], (2, 2), steps=99) == WAIT
    assert next_move([urgent], [background], (4, 4), steps=0) == Move("A")
    assert next_move([background], [urgent], (2, 2), steps=99) == Move("B", ("A",))
    assert next_move([background], [urgent], (2, 2), steps=3, quantum=16) == WAIT


def test_of_those_who_wait_the_smallest_priority_begins_and_the_larger_displaces_nobody() -> None:
    older, younger = Contender("A", A, 1, priority=1), Contender("B", B, 2)
    assert next_move([], [older, younger], (2, 2), steps=0) == Move("B")
    # Beside the head there is room for one more: who runs keeps it, for who waits steps further back.
    stays, goes = Contender("C", C, 3, priority=1), Contender("D", table((6, 7), (6, 7)), 4, priority=1)
    head, late = Contender("E", table((4, 5), (4, 5)), 5, priority=1), Contender("A", A, 2, priority=2)
    assert next_move([stays, goes], [head, late], (4, 4), steps=99) == Move("E", ("D",))
    equal = Contender("A", A, 6, priority=1)
    assert next_move([stays, goes], [head, equal], (4, 4), steps=99) == Move("E", ("C", "D"))


def test_without_anybody_waiting_nobody_is_paused() -> None:
    assert next_move(contenders(a=(A, 1)), [], (2, 2), steps=10_000) == WAIT


@dataclass
class Simulation:
    """A worker whose step takes one unit of time and whose blob takes ``blob`` units; the clock runs in both."""

    patterns: list[KeptTable]
    slots: tuple[int, ...]
    quantum: int
    blob: int
    priorities: list[int] = field(default_factory=list)
    """Of each pattern; none: all are equal."""
    work: dict[str, int] = field(default_factory=dict)
    since: dict[str, int] = field(default_factory=dict)
    waits: dict[str, int] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    resident: set[ExpertId] = field(default_factory=set)
    longest_wait: int = 0
    shortest_turn: int = 10**9
    clock: int = 0
    ticket: int = 0
    turn_start: int = 0

    @property
    def worst_swap(self) -> int:
        return sum(self.slots) * self.blob

    def arrive(self, key: str, steps: int) -> None:
        if key not in self.work:
            self._wait(key)
        self.work[key] = self.work.get(key, 0) + steps

    def _wait(self, key: str) -> None:
        self.ticket += 1
        self.since[key], self.waits[key] = self.ticket, self.clock

    def priority(self, key: str) -> int:
        return self.priorities[int(key)] if self.priorities else 0

    def _contender(self, key: str) -> Contender:
        return Contender(key, self.patterns[int(key)], self.since[key], priority=self.priority(key))

    def _pass(self, units: int) -> None:
        for _ in range(units):
            self.clock += 1
            for key in list(self.running):
                self.work[key] -= 1
                if self.work[key] == 0:
                    del self.work[key]
                    self.running.discard(key)

    def tick(self) -> None:
        move = next_move(
            [self._contender(key) for key in self.running],
            [self._contender(key) for key in self.work if key not in self.running],
            self.slots,
            steps=self.clock - self.turn_start,
            quantum=self.quantum,
        )
        if move.start is None:
            self._pass(1)
            return
        if move.pause:
            self.shortest_turn = min(self.shortest_turn, self.clock - self.turn_start)
        for key in move.pause:
            assert self.priority(key) >= self.priority(move.start), "nobody makes room for who steps back"
            self.running.remove(key)
            self._wait(key)
        if self.priority(move.start) == min(self.priorities, default=0):
            self.longest_wait = max(self.longest_wait, self.clock - self.waits[move.start])
        needed = set(experts_of(self.patterns[int(move.start)]))
        pinned = set[ExpertId]().union(*(experts_of(self.patterns[int(key)]) for key in self.running))
        loads = len(needed - self.resident)
        # The worst case of eviction: nothing survives that is not pinned.
        self.resident = needed | pinned
        assert all(sum(e.layer == layer for e in self.resident) <= self.slots[layer] for layer in range(LAYERS))
        self._pass(loads * self.blob)
        self.running.add(move.start)
        self.ticket += 1
        self.since[move.start] = self.ticket
        self.turn_start = self.clock


@st.composite
def simulations(draw: st.DrawFn) -> tuple[Simulation, list[tuple[int, str, int]]]:
    slots = tuple(draw(st.integers(2, 6)) for _ in range(LAYERS))
    layers = [st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=count).map(tuple) for count in slots]
    patterns = draw(st.lists(st.tuples(*layers).map(lambda pair: table(*pair)), min_size=1, max_size=6))
    arrival = st.tuples(st.integers(0, 120), st.integers(0, len(patterns) - 1).map(str), st.integers(1, 90))
    arrivals = draw(st.lists(arrival, min_size=1, max_size=14))
    count = len(patterns)
    priorities = draw(st.just([]) | st.lists(st.integers(0, 2), min_size=count, max_size=count))
    simulation = Simulation(patterns, slots, draw(st.integers(1, 20)), draw(st.integers(0, 3)), priorities)
    return simulation, sorted(arrivals)


@settings(deadline=None)
@given(simulations())
def test_everybody_is_served_and_nobody_starves_but_who_steps_back(
    case: tuple[Simulation, list[tuple[int, str, int]]],
) -> None:
    simulation, arrivals = case
    limit = 10_000
    while (arrivals or simulation.work) and simulation.clock < limit:
        while arrivals and arrivals[0][0] <= simulation.clock:
            _, key, steps = arrivals.pop(0)
            simulation.arrive(key, steps)
        simulation.tick()
    assert not simulation.work, "some request never ended"
    others = len(simulation.patterns) - 1
    assert simulation.longest_wait <= others * (simulation.quantum + simulation.worst_swap)
    assert simulation.shortest_turn >= simulation.quantum


def test_keys_follow_what_a_cache_entry_depends_on() -> None:
    mask = pattern_key(A, "selection")
    base = kv_key(mask, 4, "w1")
    assert base == kv_key(pattern_key(A.copy(), "selection"), 4, "w1")
    others = [
        kv_key(pattern_key(B, "selection"), 4, "w1"),
        kv_key(mask, 3, "w1"),
        kv_key(pattern_key(A, "slice"), 4, "w1"),
        kv_key(mask, 4, "w2"),
        kv_key(mask, 4, "w1", b"tenant"),
        kv_key(mask, 4, "w1", b"tenant 2"),
    ]
    assert len({base, *others}) == 7


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_pattern_keys_tell_shapes_apart(rows: list[list[bool]]) -> None:
    kept = np.array(rows, dtype=np.bool_)
    assert pattern_key(kept, "selection") != pattern_key(kept.reshape(-1, 3), "selection")
    flipped = kept.copy()
    flipped[0, 0] ^= True
    assert pattern_key(kept, "selection") != pattern_key(flipped, "selection")


@pytest.mark.parametrize("kept", [A, B, C])
def test_experts_are_the_true_cells(kept: KeptTable) -> None:
    assert {tuple(expert) for expert in experts_of(kept)} == {tuple(cell) for cell in np.argwhere(kept).tolist()}
