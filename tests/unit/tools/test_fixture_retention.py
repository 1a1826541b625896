"""The retention section of a fixture's card: the product's own masks, and answers that are measured once."""

from pathlib import Path
from statistics import fmean

import pytest
from fixture_training import retention
from fixture_training.retention import Sizes, asked, measure_retention, profiles, steps
from premoe_local.tasks import EXACT, OPEN
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.budget import Budget
from premoe_runtime.offline.evaluation.exam import Answers, Examiner
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.evaluation.rules import Patterns
from premoe_runtime.offline.profile.measure import load_full_model

SIZES = Sizes(pruned=2, wrong=1)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlotModel:
    """A random model, and a card of few rows."""
    monkeypatch.setattr(retention, "RULES", ("impact",))
    monkeypatch.setattr(retention, "POOLED", ("impact",))
    monkeypatch.setattr(retention, "SHARES", (2,))
    monkeypatch.setattr(retention, "SEEDS", (0,))
    monkeypatch.setattr(retention, "CALIBRATION", 2)
    monkeypatch.setattr(retention, "OPEN_PROMPTS", 1)
    return load_full_model(MemorySource(tiny_checkpoint(tmp_path)))


def test_rows_are_what_the_examiner_gives_and_are_measured_once(
    model: SlotModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model answers nothing: it counts as if every first prompt were answered.
    answers = Examiner.answers
    monkeypatch.setattr(Examiner, "answers", lambda *given, **told: map(_first_right, answers(*given, **told)))
    told: list[str] = []
    found = measure_retention(model, SIZES, tmp_path / "cells.jsonl", told.append)
    assert len(told) == steps()
    rows = {(row["how"], row["allocation"]): row for row in found["retention"]}  # type: ignore[attr-defined]
    assert rows.keys() == {
        ("as served", "shared"),
        ("own split", "shared"),
        ("own split", "uniform"),
        ("generalist", "shared"),
        ("generalist", "uniform"),
        ("wrong specialist", "shared"),
    }
    assert {row["percent_kept"] for row in rows.values()} == {50}
    assert all(row["retained"] == 100 for key, row in rows.items() if key[0] != "wrong specialist")
    # Of a wrong specialist's only prompt the first is right as well: 100 % where whole models have 50.
    assert rows["wrong specialist", "shared"]["retained"] == 200
    task = OPEN[0]
    rule = Patterns.by_rule(profiles(model, 0), "impact", "uniform")
    examiner = Examiner(model, {task: asked(task, 1)})
    [own] = answers(examiner, [Asked(task, rule.specialists[task].kept(Budget(4, 8)), 4)])
    assert rows["own split", "uniform"]["perplexity"][task] == pytest.approx(own.perplexity, rel=1e-3)
    assert fmean(rows["own split", "uniform"]["exact"][each] for each in EXACT) == 50

    def refuse(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Examiner, "_answers", refuse)
    assert measure_retention(model, SIZES, tmp_path / "cells.jsonl", told.append) == found


def _first_right(answers: Answers) -> Answers:
    answers.right[0] = True
    return answers
