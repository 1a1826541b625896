"""The ledger: what a swap changes in the books, whatever becomes of its copy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premoe_runtime.formats.errors import Conflict, Exhausted, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.ledger import Ledger, slots_of_layers
from premoe_runtime.residency.plan import EMPTY

LAYERS, EXPERTS = 2, 16
SLOTS = (8, 6)


def wanted(*experts: int) -> frozenset[ExpertId]:
    return frozenset(ExpertId(layer, expert) for layer in range(LAYERS) for expert in experts)


def brought(ledger: Ledger, *experts: int) -> None:
    loads = ledger.plan(wanted(*experts))
    ledger.retire(loads)
    ledger.settle(loads, {load.expert for load in loads})


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(SLOTS, (EXPERTS,) * LAYERS)


def test_an_empty_ledger_has_nothing(ledger: Ledger) -> None:
    assert (ledger.resident(), ledger.generation, ledger.slots) == (frozenset(), 0, SLOTS)
    assert ledger.lacks([ExpertId(0, 3)]) == [ExpertId(0, 3)]


def test_victims_are_absent_and_their_slots_reserved_until_settled(ledger: Ledger) -> None:
    brought(ledger, *range(6))
    plan = ledger.plan(wanted(9))
    (victim,) = (load.evicts for load in plan if load.layer == 1)
    assert ledger.retire(plan) == (victim,)
    assert victim not in ledger.resident()
    assert not wanted(9) & ledger.resident()
    with pytest.raises(Conflict, match="another swap is bringing layer 0 expert 9"):
        ledger.plan(wanted(9))
    other = ledger.plan(wanted(10))
    assert not {(x.layer, x.slot) for x in plan} & {(x.layer, x.slot) for x in other}
    entries = ledger.settle(plan, wanted(9))
    assert {expert for expert, _ in entries} == wanted(9)
    assert wanted(9) <= ledger.resident()


def test_victims_of_slots_that_were_not_written_come_back(ledger: Ledger) -> None:
    brought(ledger, *range(6))
    before = ledger.resident()
    loads = ledger.plan(wanted(9, 10))
    ledger.retire(loads)
    entries = ledger.settle(loads, frozenset())
    assert ledger.resident() == before
    assert {expert for expert, _ in entries} == {load.evicts for load in loads if load.evicts}


def test_a_torn_slot_is_empty(ledger: Ledger) -> None:
    brought(ledger, *range(6))
    loads = ledger.plan(wanted(9))
    ledger.retire(loads)
    torn = ExpertId(1, 9)
    ledger.settle(loads, {ExpertId(0, 9)}, {torn})
    (slot,) = (load.slot for load in loads if load.expert == torn)
    assert ledger.table[1][slot] == EMPTY
    assert torn not in ledger.resident()


def test_a_stale_plan_and_an_expert_in_use_are_refused_and_nothing_changes(ledger: Ledger) -> None:
    brought(ledger, *range(6))
    stale = ledger.plan(wanted(12))
    brought(ledger, 13)
    table = [list(row) for row in ledger.table]
    with pytest.raises(Conflict, match="plan it again"):
        ledger.retire(stale)
    plan = ledger.plan(wanted(12))
    with pytest.raises(Conflict, match="in use by a running sequence"):
        ledger.retire(plan, in_use={load.evicts for load in plan if load.evicts})
    assert ledger.table == table


def test_recently_used_experts_stay(ledger: Ledger) -> None:
    brought(ledger, *range(6))
    ledger.touch(wanted(0, 1, 2, 3))
    assert {load.evicts for load in ledger.plan(wanted(12, 13))} - {None} == {ExpertId(1, 4), ExpertId(1, 5)}


def test_unknown_experts_and_bad_slots_are_refused(ledger: Ledger) -> None:
    with pytest.raises(InvalidInput, match="the model has no layer 0 expert 16"):
        ledger.plan(frozenset({ExpertId(0, 16)}))
    with pytest.raises(InvalidInput, match="at least 2"):
        slots_of_layers((8, 1), (EXPERTS,) * 2)
    with pytest.raises(InvalidInput, match="slots are given for 3 layers, the model has 2"):
        slots_of_layers((8, 8, 8), (EXPERTS,) * 2)
    assert slots_of_layers(1000, (EXPERTS,) * 2) == (EXPERTS, EXPERTS)


def test_a_ledger_continues_from_a_table(ledger: Ledger) -> None:
    brought(ledger, 1, 2)
    twin = Ledger(SLOTS, (EXPERTS,) * LAYERS, ledger.table)
    assert twin.resident() == wanted(1, 2)
    assert all(twin.slot(expert) == ledger.slot(expert) for expert in wanted(1, 2))


subsets = st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=6)


@given(st.lists(st.tuples(subsets, st.integers(0, 2**12), st.integers(0, 2**12)), max_size=12))
def test_the_books_balance_whatever_becomes_of_copies(swaps: list[tuple[set[int], int, int]]) -> None:
    ledger = Ledger(SLOTS, (EXPERTS,) * LAYERS)
    for experts, written_bits, torn_bits in swaps:
        before = ledger.resident()
        try:
            loads = ledger.plan(wanted(*experts))
        except Exhausted:
            continue
        ledger.retire(loads)
        written = {load.expert for index, load in enumerate(loads) if written_bits >> index & 1}
        torn = {load.expert for index, load in enumerate(loads) if torn_bits >> index & 1} - written
        entries = ledger.settle(loads, written, torn)
        lost = {load.evicts for load in loads if load.expert in written | torn}
        assert ledger.resident() == (before | written) - lost
        assert {expert for expert, _ in entries} <= ledger.resident()
        assert Ledger(SLOTS, (EXPERTS,) * LAYERS, ledger.table).resident() == ledger.resident()
        assert all(ledger.table[expert.layer][ledger.slot(expert)] == expert.expert for expert in ledger.resident())


@given(
    st.lists(st.integers(3, 9), min_size=2, max_size=2),
    st.lists(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 8)), max_size=6), max_size=8),
)
def test_uneven_layers_hold_what_they_have_and_refuse_the_rest(
    experts: list[int], swaps: list[set[tuple[int, int]]]
) -> None:
    slots = slots_of_layers(4, experts)
    ledger = Ledger(slots, experts)
    for pairs in swaps:
        needed = frozenset(ExpertId(layer, expert) for layer, expert in pairs)
        if any(one.expert >= experts[one.layer] for one in needed):
            with pytest.raises(InvalidInput, match="the model has no layer"):
                ledger.plan(needed)
            continue
        if any(sum(one.layer == layer for one in needed) > slots[layer] for layer in range(2)):
            with pytest.raises(Exhausted):
                ledger.plan(needed)
            continue
        loads = ledger.plan(needed)
        ledger.retire(loads)
        ledger.settle(loads, {load.expert for load in loads})
        assert needed <= ledger.resident()
        assert all(one.expert < experts[one.layer] for one in ledger.resident())
