from dataclasses import replace

import numpy as np
import pytest
from support.profiles import EXPERTS, LAYERS, TOP_K, profile

from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS, Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import GENERALIST_TASK
from premoe_runtime.offline.evaluation.plan import Cell, Rules, Scope, mask_of, plan
from premoe_runtime.offline.evaluation.rules import Patterns
from premoe_runtime.offline.profile.criteria.gradients import IMPACT

BUDGET = Budget(2, 3)
TASKS = ("add", "rev")


class Shape:
    """What a plan reads of a manifest."""

    num_layers, num_experts, top_k, layer_experts = LAYERS, EXPERTS, TOP_K, (EXPERTS,) * LAYERS


SHAPE: Manifest = Shape()  # type: ignore[assignment]


def rules(spare: int = DEFAULT_SPARE_SLOTS) -> Rules:
    profiles = []
    for place, task in enumerate(TASKS):
        made = profile(task)
        impact = np.roll(np.outer([1.0, 1.5], 2.0 ** -np.arange(EXPERTS)), 3 * place, axis=1)
        profiles.append(replace(made, state=replace(made.state, sums={**made.state.sums, IMPACT: impact})))
    return {
        (0, score, allocation): Patterns.by_rule(profiles, score, allocation, spare=spare)
        for score in ("impact", "counts")
        for allocation in ("shared", "uniform")
    }


def test_a_plan_has_every_rule_once_and_what_recognition_asks_for() -> None:
    scope = Scope((BUDGET,), ("impact", "counts"))
    cells = plan(scope, TASKS, 1, {(0, "add"): ["add", "rev"], (0, "rev"): ["rev", GENERALIST_TASK]})
    assert len(cells) == len(set(cells))
    of_add = [cell for cell in cells if cell.task == "add"]
    assert [(c.score, c.allocation) for c in of_add if c.way == "own"] == [
        ("impact", "shared"),
        ("impact", "uniform"),
        ("counts", "shared"),
        ("counts", "uniform"),
    ]
    # Scores whose layers do not compare are static as published: equally many a layer.
    assert [(c.score, c.allocation) for c in of_add if c.way == "static"] == [
        ("impact", "shared"),
        ("impact", "uniform"),
        ("counts", "uniform"),
    ]
    served = {task: [c.owner for c in cells if c.task == task and c.way == "served"] for task in TASKS}
    assert served == {"add": ["add", "rev"], "rev": [GENERALIST_TASK, "rev"]}
    assert not [cell for cell in cells if cell.way == "without"]


def test_the_matrices_ask_every_task_of_every_other() -> None:
    scope = Scope((BUDGET,), ("impact",), BUDGET)
    cells = plan(scope, TASKS, 2, {(seed, task): [task] for seed in range(2) for task in TASKS})
    for way in ("served", "without"):
        pairs = {(c.owner, c.task, c.seed) for c in cells if c.way == way}
        assert pairs == {(owner, task, seed) for owner in TASKS for task in TASKS for seed in range(2)}


def test_a_static_set_keeps_what_the_worker_takes_beside() -> None:
    cell = Cell("add", "static", "counts", "uniform", BUDGET, 0)
    plain, spare, probed = (Scope((BUDGET,), spare=s, probe=p) for s, p in ((0, 0), (2, 0), (2, 3)))
    kept = [mask_of(cell, rules(), scope, SHAPE) for scope in (plain, spare, probed)]
    assert [mask.sum(axis=1).tolist() for mask in kept if mask is not None] == [[3, 3], [5, 5], [7, 7]]
    assert Scope((BUDGET,), spare=9).equal_bytes(BUDGET, SHAPE) == Budget(2, EXPERTS)


def test_without_drops_what_the_owner_keeps_and_needs_enough_left() -> None:
    scope, made = Scope((BUDGET,)), rules()
    without = Cell("add", "without", "impact", "shared", BUDGET, 0, "rev")
    left = mask_of(without, made, scope, SHAPE)
    kept = made[0, "impact", "shared"].specialists["rev"].kept(BUDGET)
    assert left is not None
    assert (left == ~kept).all()
    assert mask_of(replace(without, budget=Budget(2, 7)), made, scope, SHAPE) is None


def test_another_task_is_served_within_the_worker_s_slots() -> None:
    scope, made = Scope((BUDGET,), spare=0), rules(spare=0)
    masks = [
        mask_of(Cell("add", "served", "impact", "shared", BUDGET, 0, owner), made, scope, SHAPE)
        for owner in ("add", "rev", GENERALIST_TASK)
    ]
    slots = made[0, "impact", "shared"].splits
    assert slots is not None
    for mask in masks:
        assert mask is not None
        assert tuple(mask.sum(axis=1).tolist()) == slots.layer_slots(3, 0)


@pytest.mark.parametrize(
    ("scope", "what"),
    [
        (Scope(()), "at least one budget"),
        (Scope((BUDGET,), ()), "at least one budget and one score"),
        (Scope((Budget(3, 4),)), "the model's top-k is 2"),
        (Scope((BUDGET,), matrix=Budget(2, 9)), "the model has 8"),
    ],
)
def test_what_the_model_cannot_run_is_refused(scope: Scope, what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        scope.check(top_k=TOP_K, num_experts=EXPERTS)
