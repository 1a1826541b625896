from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.profiles import EXPERTS, LAYERS, profile

from premoe_runtime.formats.allocation import Splits
from premoe_runtime.formats.arrays import F64, Mask, existing
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.ids import WeightsId
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.patterns.bounds import Bounds, bounded
from premoe_runtime.offline.patterns.build import BuildOptions, build_set

VALUES = st.sampled_from([-3.0, 0.0, 0.25, 1.0, 1.0 + 2**-20, 3.0, 1e6])


@st.composite
def models(draw: st.DrawFn, tasks: int = 1) -> tuple[list[F64], tuple[int, ...]]:
    layers, width = draw(st.integers(1, 4)), draw(st.integers(2, 8))
    experts = (width, *draw(st.lists(st.integers(1, width), min_size=layers - 1, max_size=layers - 1)))
    tables = [draw(hnp.arrays(np.float64, (layers, width), elements=VALUES)) for _ in range(tasks)]
    return [np.where(existing(experts), table, -np.inf) for table in tables], experts


@st.composite
def bounds_of(draw: st.DrawFn, experts: tuple[int, ...]) -> Bounds:
    pairs = [(layer, expert) for layer, count in enumerate(experts) for expert in range(count)]
    pinned = draw(st.lists(st.sampled_from(pairs), max_size=5, unique=True))
    most = draw(st.none() | st.integers(1, max(experts)))
    return Bounds(tuple(sorted(pinned)), draw(st.integers(0, min(experts))), most)


def pattern(scores: F64, bounds: Bounds, allocation: Allocation) -> Pattern:
    made = Pattern.from_scores(
        scores,
        np.zeros(scores.shape),
        np.zeros(scores.shape, np.int64),
        weights_id=WeightsId("w"),
        task="t",
        kind="specialist",
        metric="impact",
        profiles=["p"],
        allocation=allocation,
    )
    return Pattern.from_bytes(bounds.applied(made).to_bytes())


def holds(kept: Mask, bounds: Bounds, experts: tuple[int, ...], active: int) -> None:
    counts = kept.sum(axis=1)
    assert all(kept[layer, expert] for layer, expert in bounds.pinned)
    assert (counts >= max(bounds.least, active)).all()
    assert (counts <= np.minimum(experts, max(experts) if bounds.most is None else bounds.most)).all()


@given(models(), st.data(), st.sampled_from(["shared", "uniform"]))
def test_every_budget_that_is_allowed_keeps_its_total_within_the_bounds(
    model: tuple[list[F64], tuple[int, ...]], data: st.DataObject, allocation: Allocation
) -> None:
    (scores,), experts = model
    bounds = data.draw(bounds_of(experts))
    active = data.draw(st.integers(1, min(experts)))
    made = pattern(scores, bounds, allocation)
    before: Mask | None = None
    for kept in range(active, max(experts) + 1):
        budget = Budget(active, kept)
        if not bounds.allows(budget, experts, allocation):
            continue
        mask = made.kept(budget)
        uniform = int(np.minimum(kept, experts).sum())
        assert mask.sum() == (min(kept * len(experts), sum(experts)) if allocation == "shared" else uniform)
        holds(mask, bounds, experts, active)
        assert before is None or not (before & ~mask).any()  # a prefix of the next
        before = mask


@given(models(tasks=2), st.data())
def test_one_split_for_all_tasks_keeps_the_bounds_within_its_slots(
    model: tuple[list[F64], tuple[int, ...]], data: st.DataObject
) -> None:
    tables, experts = model
    bounds = data.draw(bounds_of(experts))
    active = data.draw(st.integers(1, min(experts)))
    budget = Budget(active, data.draw(st.integers(active, max(experts))))
    assume(bounds.allows(budget, experts, "shared"))
    made = [pattern(table, bounds, "shared") for table in tables]
    slots = Splits.of([one.scores for one in made], active).layer_slots(budget.kept, data.draw(st.integers(0, 2)))
    for one in made:
        mask = one.kept(budget, slots)
        assert mask.sum() == min(budget.kept * len(experts), sum(experts))
        holds(mask, bounds, experts, active)


@given(models(), st.data())
def test_inside_a_band_the_order_is_that_of_the_scores(
    model: tuple[list[F64], tuple[int, ...]], data: st.DataObject
) -> None:
    (scores,), experts = model
    bounds = data.draw(bounds_of(experts))
    found = bounded(scores, bounds)
    assert ((found == -np.inf) == (scores == -np.inf)).all()
    same, exists = found == scores, scores > -np.inf
    for layer in range(len(scores)):
        order = np.argsort(-found[layer], kind="stable")
        for kind in (same[layer], found[layer] > scores[layer], found[layer] < scores[layer]):
            pins = np.array([(layer, expert) in bounds.pinned for expert in range(scores.shape[1])])
            for part in (kind & pins & exists[layer], kind & ~pins & exists[layer]):
                chosen = [expert for expert in order if part[expert]]
                assert (np.diff(scores[layer, chosen]) <= 0).all()


def test_no_bounds_change_nothing() -> None:
    plain = build_set([profile("add"), profile("sub", seed=9)])
    same = build_set([profile("add"), profile("sub", seed=9)], BuildOptions(bounds=Bounds.parse(())))
    assert plain.pattern_set.set_id == same.pattern_set.set_id


def test_a_built_set_keeps_its_pins_in_every_pattern() -> None:
    bounds = Bounds.parse(["0:7", "1:0,6"], least=2, most=6)
    options = BuildOptions(bounds=bounds, allocation="shared", metric="seer", budgets=(Budget(2, 3), Budget(2, 6)))
    built = build_set([profile("add"), profile("sub", seed=9)], options)
    for each in built.patterns:
        for kept in (3, 6):
            holds(each.kept(Budget(2, kept)), bounds, (EXPERTS,) * LAYERS, 2)


def build(budget: str = "2/4", allocation: Allocation = "uniform", **bounds: object) -> Callable[[], object]:
    made = Bounds(**bounds)  # type: ignore[arg-type]
    options = BuildOptions(bounds=made, allocation=allocation, budgets=(Budget.parse(budget),))
    return lambda: build_set([profile("add")], options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Bounds.parse(["3"]), "pin '3' is not of the form LAYER:EXPERT,"),
        (lambda: Bounds.parse(["0:a"]), "pin '0:a' is not of the form"),
        (lambda: Bounds.parse(["0:-1"]), "pin '0:-1' is not of the form"),
        (build(pinned=((2, 0),)), "expert 0 of MoE layer 2 cannot be pinned: there are 2, counted from 0"),
        (build(pinned=((1, 8),)), "expert 8 of MoE layer 1 cannot be pinned: this layer has 8 experts"),
        (build(least=9), "at least 9 experts a layer are asked for, but some layer has 8"),
        (build(least=5, most=4), "MoE layer 0 is to keep 5 experts at least .* and 4 at most"),
        (build(pinned=((1, 0), (1, 1), (1, 2)), most=2), "MoE layer 1 is to keep 3 experts at least .* and 2 at most"),
        (build(least=5), "budget 2/4 keeps 4 experts a layer, but the bounds ask for 5 to"),
        (build("2/6", most=5), "budget 2/6 keeps 6 experts a layer, but the bounds ask for 2 to 5"),
        (build("2/6", "shared", most=5), "budget 2/6 keeps 12 experts in all, but the bounds ask for 4 to 10"),
        (build("2/2", "shared", pinned=((0, 1), (0, 2), (0, 3))), "budget 2/2 keeps 4 experts in all, .* 5 to 16"),
    ],
)
def test_bounds_that_nothing_can_keep_are_refused_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
