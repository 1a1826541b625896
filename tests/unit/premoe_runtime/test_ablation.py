"""The plan of an ablation, and what its answers say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.domains import Domains
from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.ids import WeightsId
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.evaluation.ablation import Ablation, Cell, losses, means
from premoe_runtime.offline.evaluation.exam import Answers

SHAPE = (3, 12)
TOP_K = 2
EXISTS = np.ones(SHAPE, np.bool_)


def pattern(task: str, scores: F64) -> Pattern:
    zeros = np.zeros(SHAPE)
    return Pattern.from_scores(
        scores,
        zeros,
        zeros.astype(np.int64),
        weights_id=WeightsId("w"),
        task=task,
        kind="specialist",
        metric="impact",
        profiles=(),
        allocation="shared",
    )


def planned(scores: Mapping[str, F64], *budgets: Budget | None, controls: int = 2) -> Ablation:
    domains = Domains(scores, TOP_K)
    specialists = {task: pattern(task, each) for task, each in scores.items()}
    return Ablation.of(
        tuple(scores), specialists, domains, exists=EXISTS, top_k=TOP_K, budgets=budgets, controls=controls
    )


def own(*experts: int) -> F64:
    scores = np.full(SHAPE, 0.01)
    scores[:, list(experts)] = 1.0
    return scores


APART = {"a": own(0, 1, 2), "b": own(3, 4, 5), "c": own(6, 7, 8)}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, Budget(2, 4), Budget(1, 8)]))
def test_controls_take_as_many_of_every_layer(seed: int, budget: Budget | None) -> None:
    draw = np.random.default_rng(seed)
    try:
        plan = planned({task: draw.random(SHAPE) ** 8 for task in "abc"}, budget)
    except InvalidInput:
        return
    for cell in plan.cells():
        asked = plan.asked(cell)
        assert asked is not None
        if not cell.denied:
            continue
        assert asked.kept is not None
        assert asked.kept.sum(axis=1).min() >= asked.active
        kept = plan.kept(cell.task, budget)
        if cell.draw is None:
            assert not (asked.kept & plan.own[cell.denied]).any()
        elif budget is None:
            assert (asked.kept.sum(axis=1) == (kept & ~plan.own[cell.denied]).sum(axis=1)).all()
        else:
            gone = (kept & plan.own[cell.denied]).sum()
            assert (kept & ~asked.kept).sum() >= gone
            assert asked.kept.sum() == min(kept.sum(), EXISTS.sum() - gone), "the next best come in"


def test_every_task_runs_without_every_other_and_controls_are_drawn_alike_each_time() -> None:
    plan = planned(APART, None, Budget(1, 4))
    cells = plan.cells()
    assert len(cells) == len(set(cells)) == 3 * 2 * (1 + 3 * 3)
    assert cells[0] == Cell("a", None)
    again = planned(APART, None, Budget(1, 4))
    for cell in cells:
        one, other = plan.asked(cell), again.asked(cell)
        assert one is not None
        assert other is not None
        assert one.kept is None or np.array_equal(one.kept, other.kept)  # type: ignore[arg-type]
    draws = [plan.asked(Cell("a", None, "b", draw)) for draw in (0, 1)]
    assert not np.array_equal(*[one.kept for one in draws if one])  # type: ignore[arg-type]


def answers(right: str, kl: float = 0.0) -> Answers:
    hits = np.array([digit == "1" for digit in right])
    ones = np.ones(len(right))
    return Answers(hits, ones, ones.astype(np.int64), kl * ones, ones)


def test_losses_are_points_below_the_same_task_with_nobody_denied() -> None:
    plan = planned(APART, None, controls=2)
    found = {cell: answers("1110") for cell in plan.cells()}
    found |= {cell: answers("0000") for cell in plan.cells() if cell.task == "c"}
    found[Cell("a", None, "a")] = answers("0000", kl=2.0)
    found[Cell("a", None, "b", 1)] = answers("1100")
    lost = {(one.task, one.denied, one.control): one for one in losses(plan, found)}
    own_loss = lost["a", "a", False]
    assert own_loss.lost is not None
    assert (own_loss.lost.value, own_loss.kl.value, own_loss.experts) == (75.0, 2.0, 9)
    assert own_loss.lost.low < 75 < own_loss.lost.high
    by_chance = lost["a", "b", True].lost
    assert by_chance is not None
    assert by_chance.value == pytest.approx(12.5)
    assert lost["c", "a", False].lost is None, "never answered exactly: perplexity and KL alone"
    assert own_loss.document()["exact_match_lost"][0] == 75.0
    mine, drawn = means(plan, found)
    assert (mine.control, drawn.control) == (False, True)
    assert mine.own is not None
    assert mine.others is not None
    assert (mine.own.value, mine.others.value) == (37.5, 0.0), "of a and b; c is never answered exactly"
    assert mine.document()["own_kl"][0] == pytest.approx(2 / 3, abs=1e-4)
    assert drawn.document()["others"][0] == pytest.approx(3.125)


def test_unknown_tasks_and_sets_without_domains_are_said() -> None:
    domains = Domains(APART, TOP_K)
    specialists = {task: pattern(task, each) for task, each in APART.items()}
    with pytest.raises(NotFound, match="no pattern for task 'z'; the patterns of the set are for a, b, c"):
        Ablation.of(("z",), specialists, domains, exists=EXISTS, top_k=TOP_K, budgets=(None,))
    alike = dict.fromkeys("ab", np.ones(SHAPE))
    with pytest.raises(InvalidInput, match="nothing to deny: deny: no expert is 'b''s own"):
        planned(alike, None)
