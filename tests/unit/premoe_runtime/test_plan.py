"""Swap plans: minimal, deterministic, and never at the cost of an expert in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.plan import EMPTY, Load, plan_swap

LAYERS, EXPERTS = 3, 8
SLOTS = (5, 3, 4)
experts = st.builds(ExpertId, st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1))


def ids(layer: int, *numbers: int) -> frozenset[ExpertId]:
    return frozenset(ExpertId(layer, number) for number in numbers)


def victims(loads: tuple[Load, ...]) -> frozenset[ExpertId]:
    return frozenset(load.evicts for load in loads if load.evicts is not None)


def planned(
    needed: frozenset[ExpertId],
    resident: dict[ExpertId, int],
    pinned: frozenset[ExpertId],
    slots: tuple[int, ...],
    recency: dict[ExpertId, int],
    reserved: frozenset[tuple[int, int]] = frozenset(),
) -> tuple[Load, ...]:
    """``plan_swap`` over the table that ``resident`` (expert -> slot) describes."""
    table = [[EMPTY] * count for count in slots]
    for expert, slot in resident.items():
        table[expert.layer][slot] = expert.expert
    return plan_swap(needed, table, pinned, recency, reserved=reserved)


def test_free_slots_first_then_the_least_recently_used() -> None:
    resident = {ExpertId(0, 0): 0, ExpertId(0, 1): 1, ExpertId(0, 2): 3}
    recency = {ExpertId(0, 0): 9, ExpertId(0, 1): 4, ExpertId(0, 2): 7}
    plan = planned(ids(0, 5, 6), resident, frozenset(), (4,) * LAYERS, recency)
    assert plan == (
        Load(ExpertId(0, 5), 2),
        Load(ExpertId(0, 6), 1, ExpertId(0, 1)),
    )
    assert victims(plan) == ids(0, 1)


def test_only_what_is_missing_moves() -> None:
    resident = {ExpertId(0, 0): 0, ExpertId(0, 1): 1}
    plan = planned(ids(0, 0, 1), resident, frozenset(), (2,) * LAYERS, {})
    assert plan == ()


def test_never_used_goes_before_used_and_ties_to_the_lower_id() -> None:
    resident = {ExpertId(0, 4): 0, ExpertId(0, 2): 1, ExpertId(0, 3): 2}
    plan = planned(ids(0, 7, 8), resident, frozenset(), (3,) * LAYERS, {ExpertId(0, 4): 0})
    assert [load.evicts for load in plan] == [ExpertId(0, 2), ExpertId(0, 3)]


def test_exhausted_says_where_and_what_to_do() -> None:
    resident = {ExpertId(1, 0): 0, ExpertId(1, 1): 1}
    with pytest.raises(Exhausted, match=r"^layer 1 needs 2 more experts, but of its 2 slots only 1 are free") as caught:
        planned(ids(1, 5, 6), resident, ids(1, 0), (4, 2, 4), {})
    assert caught.value.reason == "SLOTS_EXHAUSTED"
    assert "\n" not in str(caught.value)


def test_slots_of_another_swap_are_left_alone() -> None:
    plan = planned(ids(0, 5), {}, frozenset(), (2,) * LAYERS, {}, reserved=frozenset({(0, 0)}))
    assert plan == (Load(ExpertId(0, 5), 1),)
    with pytest.raises(Exhausted):
        planned(ids(0, 5, 6), {}, frozenset(), (2,) * LAYERS, {}, reserved=frozenset({(0, 0)}))


@st.composite
def tables(draw: st.DrawFn) -> dict[ExpertId, int]:
    resident: dict[ExpertId, int] = {}
    for layer in range(LAYERS):
        slots = draw(st.permutations(range(SLOTS[layer])))
        held = draw(st.lists(st.integers(0, EXPERTS - 1), unique=True, max_size=SLOTS[layer]))
        resident |= {ExpertId(layer, expert): slot for expert, slot in zip(held, slots, strict=False)}
    return resident


@given(
    needed=st.frozensets(experts),
    resident=tables(),
    pinned=st.frozensets(experts, max_size=6),
    reserved=st.frozensets(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, min(SLOTS) - 1)), max_size=4),
    recency=st.dictionaries(experts, st.integers(0, 20)),
)
def test_any_plan_serves_its_purpose(
    needed: frozenset[ExpertId],
    resident: dict[ExpertId, int],
    pinned: frozenset[ExpertId],
    reserved: frozenset[tuple[int, int]],
    recency: dict[ExpertId, int],
) -> None:
    # A slot that a swap writes is never published.
    resident = {expert: slot for expert, slot in resident.items() if (expert.layer, slot) not in reserved}
    kept = needed | (pinned & resident.keys())
    fits = all(
        len({e for e in kept if e.layer == layer}) + len({r for r in reserved if r[0] == layer}) <= SLOTS[layer]
        for layer in {e.layer for e in needed - resident.keys()}
    )
    try:
        plan = planned(needed, resident, pinned, SLOTS, recency, reserved=reserved)
    except Exhausted:
        assert not fits
        return
    assert fits
    assert plan == planned(needed, dict(reversed(resident.items())), pinned, SLOTS, recency, reserved=reserved)
    after = {expert: slot for expert, slot in resident.items() if expert not in victims(plan)}
    after |= {load.expert: load.slot for load in plan}
    assert needed <= after.keys()
    assert pinned & resident.keys() <= after.keys()
    assert len(plan) == len(needed - resident.keys())
    places = [(expert.layer, slot) for expert, slot in after.items()]
    assert len(places) == len(set(places))
    assert not reserved & {(load.layer, load.slot) for load in plan}
    for load in plan:
        assert 0 <= load.slot < SLOTS[load.layer]
        assert load.evicts is None or resident[load.evicts] == load.slot
    for victim in victims(plan):
        spared = {e for e in resident if e.layer == victim.layer and e not in victims(plan) | needed | pinned}
        assert all(recency.get(victim, -1) <= recency.get(other, -1) for other in spared)
