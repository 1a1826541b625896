from typing import Any

import numpy as np
import pytest

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import GENERALIST_TASK
from premoe_runtime.offline.evaluation.exam import Answers
from premoe_runtime.offline.evaluation.figures import figures
from premoe_runtime.offline.evaluation.plan import Cell, Scope
from premoe_runtime.offline.evaluation.sweep import Results

BUDGET = Budget(2, 4)


class Shape:
    """What figures read of a manifest."""

    model_id = weights_id = "m" * 64
    family, num_layers, num_experts, top_k = "qwen3_moe", 2, 16, 2


MANIFEST: Manifest = Shape()  # type: ignore[assignment]


def answers(right: str, nll: float = 1.0) -> Answers:
    hits = np.array([digit == "1" for digit in right])
    ones = np.ones(len(right))
    return Answers(hits, nll * ones, ones.astype(np.int64), 0.1 * ones, ones)


def results(full: dict[str, str], cells: dict[Cell, str], decisions: dict[tuple[int, str], list[str]]) -> Results:
    scope = Scope((BUDGET,), ("counts",), BUDGET)
    found = {cell: answers(right) for cell, right in cells.items()}
    whole = {task: answers(right, 0.5) for task, right in full.items()}
    held = {one: 0.75 for one in found if one.way == "served" and one.owner == one.task}
    return Results(scope, MANIFEST, tuple(full), 1, whole, found, decisions, held)


def cell(task: str, way: str, owner: str = "") -> Cell:
    score, allocation = ("counts", "uniform") if way in ("own", "static") else ("impact", "shared")
    return Cell(task, way, score, allocation, BUDGET, 0, owner)  # type: ignore[arg-type]


FULL = {"a": "1111", "b": "1100", "text": "0000"}
CELLS = {
    **{cell(task, "own"): right for task, right in {"a": "1110", "b": "0100", "text": "0000"}.items()},
    **{cell(task, "static"): right for task, right in {"a": "1000", "b": "0000", "text": "0000"}.items()},
    **{cell(task, "served", task): right for task, right in {"a": "1111", "b": "1000", "text": "0000"}.items()},
    cell("a", "served", "b"): "0000",
    cell("b", "served", "a"): "0111",
    cell("b", "served", GENERALIST_TASK): "0011",
    cell("a", "without", "a"): "0100",
    cell("a", "without", "b"): "1111",
    cell("b", "without", "a"): "1100",
}
DECISIONS = {(0, "a"): ["a", "a", "a", "b"], (0, "b"): ["b", GENERALIST_TASK, "a", "b"], (0, "text"): ["text"] * 4}


@pytest.fixture
def document() -> dict[str, Any]:
    return figures([results(FULL, CELLS, DECISIONS)])


def test_retained_accuracy_is_over_the_tasks_that_the_full_model_answers(document: dict[str, Any]) -> None:
    assert document["counted"] == ["a", "b"]
    own = next(row for row in document["kept"] if row["way"] == "own")
    assert own["retained"][0] == (75 + 50) / 2
    assert own["tasks"]["a"]["accuracy"][0] == 75
    assert own["tasks"]["b"]["retained"][0] == 50
    assert "retained" not in own["tasks"]["text"]
    assert own["tasks"]["text"]["perplexity"][0] == pytest.approx(np.e, abs=0.01)
    assert own["tasks"]["text"]["kl"][0] == pytest.approx(0.1)


def test_the_share_of_a_task_s_score_that_its_experts_hold_is_said_where_it_is_known(document: dict[str, Any]) -> None:
    held = {row["way"]: row["held"] for row in document["kept"]}
    assert held == {"own": {}, "static": {}, "served": {"a": 75.0, "b": 75.0, "text": 75.0}}


def test_a_retrieved_prompt_is_answered_by_the_experts_it_was_given(document: dict[str, Any]) -> None:
    (contest,) = document["contest"]
    ours, static = contest["entrants"]
    # a: three right with its own, the last wrong with b's. b: right, wrong (generalist), right (a's), wrong.
    assert ours["tasks"]["a"]["accuracy"][0] == 75
    assert ours["tasks"]["b"]["accuracy"][0] == 50
    assert ours["retained"][0] == (75 + 100) / 2
    assert static["retained"][0] == (25 + 0) / 2
    # Frequency is another's score, so that both leads are over the same set here.
    assert [lead["points"][0] for lead in contest["leads"]] == [75, 75]
    assert (ours["behind"], static["behind"][0]) == (None, 75)
    assert contest["static_experts"] == 6
    assert document["recognition"] == {
        "a": {"own": 75.0, "generalist": 0.0, "other": 25.0},
        "b": {"own": 50.0, "generalist": 25.0, "other": 25.0},
        "text": {"own": 100.0, "generalist": 0.0, "other": 0.0},
    }


def test_the_matrices_say_whose_experts_and_whose_prompts(document: dict[str, Any]) -> None:
    matrix = document["matrix"]
    values = {key: [[one and one[0] for one in line] for line in matrix[key]] for key in ("retained", "without")}
    # Rows: experts of a, of b. Without b's own experts too little was left.
    assert values == {"retained": [[100, 150], [0, 50]], "without": [[25, 100], [100, None]]}


def test_a_model_that_answers_nothing_exactly_has_perplexities_only() -> None:
    document = figures([results({"text": "0000"}, {k: v for k, v in CELLS.items() if k.task == "text"}, DECISIONS)])
    assert document["counted"] == []
    assert document["kept"][0]["retained"] is None
    ours, static = document["contest"][0]["entrants"]
    assert (ours["retained"], ours["kl"][0], static["kl"][0]) == (None, pytest.approx(0.1), pytest.approx(0.1))
    assert document["contest"][0]["leads"] == []
    assert document["kept"][0]["tasks"]["text"]["perplexity"][0] > 1


def test_several_models_have_a_ratio_each_and_their_mean_is_told() -> None:
    # A second training seed with other answers, whole as well as pruned.
    weaker = {task: right if task == "b" else right.replace("1", "0", 1) for task, right in FULL.items()}
    pruned = {**CELLS, cell("a", "own"): "0001", cell("b", "own"): "1100"}
    document = figures([results(FULL, CELLS, DECISIONS), results(weaker, pruned, DECISIONS)])
    own = next(row for row in document["kept"] if row["way"] == "own")
    # a: 3 of 4 and 1 of 3; b: 1 of 2 and 2 of 2.
    assert own["tasks"]["a"]["retained"][0] == pytest.approx(100 * (3 / 4 + 1 / 3) / 2, abs=0.01)
    assert own["retained"][0] == pytest.approx(100 * (3 / 4 + 1 / 3 + 1 / 2 + 1) / 4, abs=0.01)
    assert own["seeds"] == [[62.5], [66.67]]
    assert document["full"]["a"]["accuracy"][0] == 87.5
    assert len(document["model"]["models"]) == 2
    (contest,) = document["contest"]
    assert contest["leads"][0]["points"][0] == pytest.approx(
        contest["entrants"][0]["retained"][0] - contest["entrants"][1]["retained"][0]
    )


def test_a_task_that_one_of_the_models_does_not_answer_is_in_no_mean() -> None:
    document = figures([results(FULL, CELLS, DECISIONS), results({**FULL, "b": "0000"}, CELLS, DECISIONS)])
    assert document["counted"] == ["a"]
    assert document["full"]["b"]["models"] == [50, 0]


def test_models_that_were_asked_other_prompts_are_refused() -> None:
    fewer = results({task: right[:3] for task, right in FULL.items()}, CELLS, DECISIONS)
    with pytest.raises(InvalidInput, match=r"not asked the same: a \(4 and 3 prompts\), b"):
        figures([results(FULL, CELLS, DECISIONS), fewer])
