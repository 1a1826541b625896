from collections import Counter

import pytest
from support.profiles import profile

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.pattern import GENERALIST_TASK, Pattern
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.set_card import Decided
from premoe_runtime.offline.evaluation.decisions import Decisions, decided_runs, worth
from premoe_runtime.offline.evaluation.rules import Patterns
from premoe_runtime.offline.evaluation.variants import Outcome, Run
from premoe_runtime.offline.masks.pattern import joined
from premoe_runtime.offline.patterns.build import build_set
from premoe_runtime.offline.patterns.derive import generalist, specialist

BUDGET = Budget(2, 4)
RIGHT = {("add", "add"): 9, ("add", "rev"): 1, ("add", GENERALIST_TASK): 5, ("rev", "rev"): 8}
DECISIONS: Decisions = {
    "add": Counter({("specialist", "add"): 6, ("specialist", "rev"): 3, ("generalist", GENERALIST_TASK): 1}),
    "rev": Counter({("full", ""): 1, ("reject", ""): 1}),
}


@pytest.fixture
def rule() -> Patterns:
    profiles = [profile(task) for task in ("add", "json", "rev")]
    return Patterns({one.task: specialist(one) for one in profiles}, generalist(profiles), None)


def answered(run: Run) -> Outcome:
    pattern = run.pattern
    assert isinstance(pattern, Pattern)
    return Outcome(run, 10, RIGHT[run.task, pattern.task], 1.0, 1.0)


def test_a_task_is_run_under_its_own_specialist_and_what_its_prompts_were_given(rule: Patterns) -> None:
    runs = decided_runs(DECISIONS, [BUDGET], rule)
    assert {(run.task, run.pattern.task) for run in runs if run.pattern} == RIGHT.keys()
    assert {(run.variant, run.budget) for run in runs} == {("decided", BUDGET)}


def test_a_decision_costs_what_the_own_specialist_has_more_by_how_often_it_is_made(rule: Patterns) -> None:
    outcomes = [answered(run) for run in decided_runs(DECISIONS, [BUDGET], rule)]
    outcomes += [Outcome(Run(task, "full", None, None), 10, 10, 1.0, 1.0) for task in DECISIONS]
    found = {
        (one.task, one.kind): (one.pattern, one.share, one.accuracy, round(one.lost, 6))
        for one in worth(DECISIONS, [BUDGET], outcomes)
        if one.pattern != "rev"
    }
    assert found == {
        ("add", "specialist"): ("add", 0.6, 0.9, 0),
        ("add", "generalist"): (GENERALIST_TASK, 0.1, 0.5, 0.04),
        ("rev", "full"): ("", 0.5, 1.0, -0.1),
        ("rev", "reject"): ("", 0.5, 0.0, 0.4),
    }
    (wrong,) = (one for one in worth(DECISIONS, [BUDGET], outcomes) if one.pattern == "rev")
    assert (wrong.task, wrong.share, wrong.accuracy) == ("add", 0.3, 0.1)
    assert wrong.lost == pytest.approx(0.3 * 0.8)


def test_a_set_keeps_what_was_measured_until_it_has_other_tasks() -> None:
    plain = build_set([profile(task) for task in ("add", "rev")]).pattern_set
    assert b'"decided"' not in plain.to_files()[0]
    one = Decided(task="add", budget="2/4", kind="reject", share=0.5, accuracy=0, lost=0.5)
    measured = plain.under(plain.document.model_copy(update={"decided": (one,)}))
    assert measured.set_id != plain.set_id
    assert PatternSet.from_files(*measured.to_files()).document.decided == (one,)
    assert measured.under(measured.document.model_copy(update={"decided": ()})).set_id == plain.set_id
    assert joined(measured, specialist(profile("poem"))).document.decided == ()
