from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from premoe_runtime.formats.allocation import (
    Splits,
    common,
    even_slots,
    kept,
    layer_counts,
    one_split,
    share,
    share_every,
    spread_spare,
)
from premoe_runtime.formats.arrays import F64, existing
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import InvalidInput

VALUES = st.sampled_from([0.0, 0.25, 1.0, 1.0 + 2**-40, 3.0, 100.0])
SHAPES = st.tuples(st.integers(1, 4), st.integers(2, 7))
SCORES = SHAPES.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=VALUES))
TASKS = SHAPES.flatmap(
    lambda shape: st.lists(hnp.arrays(np.float64, shape, elements=VALUES), min_size=1, max_size=4),
)


def _uneven(scores: F64) -> st.SearchStrategy[F64]:
    layers, experts = scores.shape
    counts = st.lists(st.integers(1, experts), min_size=layers, max_size=layers)
    return counts.map(lambda found: cut(scores, [experts, *found[1:]]))


def cut(scores: F64, experts: list[int]) -> F64:
    """The scores of a model with so many experts in each layer."""
    return np.where(existing(experts), scores[:, : max(experts)], -np.inf)


UNEVEN = SCORES.flatmap(_uneven)
ALLOCATIONS: tuple[Allocation, ...] = ("shared", "uniform")


def greedy(scores: F64, total: int, floor: int, most: list[int]) -> list[int]:
    """The definition, one expert after another."""
    best = -np.sort(-scores, axis=1)
    counts = [floor] * len(scores)
    while sum(counts) < total:
        open_layers = [layer for layer, count in enumerate(counts) if count < most[layer]]
        counts[min(open_layers, key=lambda l: (-best[l, counts[l]], counts[l], l))] += 1  # noqa: E741
    return counts


@given(SCORES, st.data())
def test_shares_are_the_greedy_choice_within_floor_and_slots(scores: F64, data: st.DataObject) -> None:
    layers, experts = scores.shape
    floor = data.draw(st.integers(0, experts))
    most = data.draw(st.lists(st.integers(floor, experts), min_size=layers, max_size=layers))
    total = data.draw(st.integers(floor * layers, sum(most)))
    found = share(scores, total, floor, most)
    assert found.sum() == total
    assert ((floor <= found) & (found <= most)).all()
    assert found.tolist() == greedy(scores, total, floor, most)


@given(SCORES, st.integers(1, 7))
def test_every_budget_is_a_prefix_of_one_order(scores: F64, floor: int) -> None:
    layers, experts = scores.shape
    table = share_every(scores, floor)
    for budget in range(1, experts + 1):
        assert table[budget - 1].tolist() == share(scores, budget * layers, min(floor, budget)).tolist()
    assert (np.diff(table, axis=0) >= 0).all()


@given(SCORES, st.data())
def test_equal_scores_share_evenly_so_uniform_is_the_same_rule(scores: F64, data: st.DataObject) -> None:
    layers, experts = scores.shape
    number = data.draw(st.integers(1, experts))
    assert layer_counts(scores, number, 1, "uniform").tolist() == [number] * layers


def test_uniform_numbers_that_do_not_fit_are_made_up_for_evenly() -> None:
    assert layer_counts(np.ones((3, 16)), 8, 4, "uniform", [4, 16, 16]).tolist() == [4, 10, 10]


@given(TASKS, st.data())
def test_one_split_grows_by_the_mean_share_of_the_next_expert(tasks: list[F64], data: st.DataObject) -> None:
    layers, experts = tasks[0].shape
    floor = data.draw(st.integers(1, experts))
    total = data.draw(st.integers(floor * layers, experts * layers))
    split = one_split(tasks, total, floor)
    assert split.sum() == total
    assert split.tolist() == greedy(common(tasks), total, floor, [experts] * layers)
    assert one_split([tasks[0]], total, floor).tolist() == share(common(tasks[:1]), total, floor).tolist()


def test_a_task_counts_by_its_own_total() -> None:
    strong, weak = np.array([[9e6, 9e6], [1.0, 1.0]]), np.array([[0.0, 0.0], [1e-6, 1e-6]])
    assert one_split([strong, weak, weak], 3, 1).tolist() == [1, 2]


@given(TASKS, st.data())
def test_slots_with_spare_ones_cost_what_equal_slots_cost(tasks: list[F64], data: st.DataObject) -> None:
    layers, experts = tasks[0].shape
    budget = data.draw(st.integers(1, experts))
    spare = data.draw(st.integers(0, experts))
    split = one_split(tasks, budget * layers, 1)
    wants = np.max([share(task, budget * layers, 1) for task in tasks], axis=0)
    slots = spread_spare(split, wants, spare, experts)
    assert slots.sum() == min(budget + spare, experts) * layers
    assert (split <= slots).all()
    assert (slots <= experts).all()
    # No slot beyond what a task wants while another want is unmet.
    assert (slots >= wants).all() or (slots <= np.maximum(split, wants)).all()
    if budget + spare >= experts:
        assert (slots == experts).all()


def test_spare_slots_go_where_tasks_want_more_and_then_evenly() -> None:
    split, wants = np.array([4, 4, 4]), np.array([8, 5, 4])
    assert spread_spare(split, wants, 0, 16).tolist() == [4, 4, 4]
    assert spread_spare(split, wants, 1, 16).tolist() == [7, 4, 4]
    assert spread_spare(split, wants, 2, 16).tolist() == [8, 5, 5]
    assert spread_spare(split, split, 2, 16).tolist() == [6, 6, 6]


@given(SCORES, st.data())
def test_the_kept_set_is_the_best_of_each_layer(scores: F64, data: st.DataObject) -> None:
    layers, experts = scores.shape
    counts = data.draw(st.lists(st.integers(0, experts), min_size=layers, max_size=layers))
    ranking = np.argsort(-scores, axis=1, kind="stable").astype(np.int16)
    mask = kept(ranking, counts)
    assert mask.sum(axis=1).tolist() == counts
    for layer, count in enumerate(counts):
        assert set(np.flatnonzero(mask[layer])) == set(ranking[layer, :count].tolist())


@given(SCORES, st.data())
def test_a_task_keeps_its_total_within_the_slots_of_every_layer(scores: F64, data: st.DataObject) -> None:
    layers, experts = scores.shape
    budget = data.draw(st.integers(1, experts))
    slots = spread_spare(one_split([scores[:, ::-1] ** 2], budget * layers, 1), np.full(layers, budget), 1, experts)
    for allocation in ("shared", "uniform"):
        counts = layer_counts(scores, budget, 1, allocation, slots)
        assert counts.sum() == budget * layers
        assert (counts <= slots).all()


@given(UNEVEN, st.data())
def test_uneven_layers_share_what_there_is_and_never_more(scores: F64, data: st.DataObject) -> None:
    layers, width = scores.shape
    experts = (scores > -np.inf).sum(axis=1)
    floor = data.draw(st.integers(0, int(experts.min())))
    budget = data.draw(st.integers(max(1, floor), width))
    total = min(budget * layers, int(experts.sum()))
    shared = layer_counts(scores, budget, floor, "shared")
    assert shared.sum() == total
    assert shared.tolist() == greedy(scores, total, floor, experts.tolist())
    assert layer_counts(scores, budget, floor, "uniform").tolist() == np.minimum(budget, experts).tolist()
    table = share_every(scores, floor)
    assert table[budget - 1].tolist() == shared.tolist()
    assert table[-1].tolist() == experts.tolist()
    ranking = np.argsort(-scores, axis=1, kind="stable").astype(np.int16)
    assert not (kept(ranking, shared) & (scores == -np.inf)).any()


@given(st.lists(UNEVEN, min_size=1, max_size=1), st.data())
def test_a_split_of_uneven_layers_holds_every_task_within_the_bytes_of_even_slots(
    tasks: list[F64], data: st.DataObject
) -> None:
    layers, width = tasks[0].shape
    experts = (tasks[0] > -np.inf).sum(axis=1)
    tasks.append(np.where(tasks[0] > -np.inf, tasks[0].max() - tasks[0], -np.inf))
    floor = data.draw(st.integers(1, int(experts.min())))
    budget, spare = data.draw(st.integers(floor, width)), data.draw(st.integers(0, 3))
    splits = Splits.of(tasks, floor)
    slots = np.array(splits.layer_slots(budget, spare))
    even = {allocation: even_slots(budget + spare, experts.tolist(), allocation) for allocation in ALLOCATIONS}
    assert slots.sum() == sum(even["shared"]) == min((budget + spare) * layers, experts.sum())
    assert even["uniform"] == tuple(np.minimum(budget + spare, experts).tolist())
    for given_slots in (slots, np.array(even["shared"])):
        assert (given_slots <= experts).all()
        for task, allocation in product(tasks, ALLOCATIONS):
            assert (layer_counts(task, budget, floor, allocation, given_slots) <= given_slots).all()
    assert (layer_counts(tasks[0], budget, floor, "uniform", even["uniform"]) <= np.array(even["uniform"])).all()


def test_even_slots_give_others_what_a_short_layer_cannot_use_only_where_shared() -> None:
    assert even_slots(6, (8, 4, 8), "shared") == (7, 4, 7)
    assert even_slots(6, (8, 4, 8), "uniform") == (6, 4, 6)
    assert even_slots(9, (8, 4, 8), "shared") == (8, 4, 8)
    assert even_slots(5, (16, 16), "shared") == even_slots(5, (16, 16), "uniform") == (5, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share(np.ones((2, 8)), 7, 4), "7 experts in 2 layers leave some layer fewer than the 4"),
        (lambda: share(np.ones((2, 8)), 8, 4, [8, 3]), "MoE layer 1 has room for 3 experts"),
        (lambda: share(np.ones((2, 8)), 14, 4, [6, 7]), "14 experts are to be kept in all, but there is room for 13"),
        (lambda: share(np.ones((2, 8)), 17, 4), "there is room for 16"),
        (lambda: share(np.ones((2, 8)), 8, 4, [8, 8, 8]), "slots for 3 layers given, the model has 2"),
        (lambda: one_split([], 8, 4), "no task"),
    ],
)
def test_what_can_never_fit_is_refused_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
