"""docs/evaluation.md says what its figures say, and which goals they miss."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from evaluation_page import GOALS, PAGE, ROOT, goals, known, page, remarks, trained
from fixture_training.trainer import RECIPES


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    found = known()
    assert "tiny-moe" in found
    return found


def test_the_page_is_made_of_its_figures(documents: dict[str, Any]) -> None:
    assert PAGE.read_text() == page(documents), "stale; run: python tools/evaluation_page.py --page-only"


def test_three_seeds_and_every_budget_of_a_goal_were_measured(documents: dict[str, Any]) -> None:
    for name, document in documents.items():
        assert document["seeds"] >= 3
        measured = {row["percent"] for row in document["kept"] if row["way"] == "served"}
        assert measured >= set(GOALS[name])
        assert document["matrix"]["percent"] == 25


def test_the_page_says_where_goals_are_of_fewer_training_seeds_than_three(documents: dict[str, Any]) -> None:
    few = {**documents["tiny-moe"], "model": {"models": [{}]}}
    assert "Measured so far: `tiny-moe` 1." in remarks({"tiny-moe": few})
    full = {**few["full"], "add": {**few["full"]["add"], "models": [100.0, 0.0]}}
    unlearnt = {**few, "full": full, "counted": few["counted"][1:]}
    assert "the models answer `add` 100, 0 %." in remarks({"tiny-moe": unlearnt})
    assert "not every training seed" not in remarks({"tiny-moe": few})
    assert "What `tiny-moe-natural` loses first is `lang`" in remarks(documents)
    assert "Measured so far" not in remarks({"tiny-moe": {**few, "model": {"models": [{}] * 3}}})
    for name, document in documents.items():
        assert document["recipe"]["model"] == [
            f"{name}, training seed {seed}" for seed in range(len(document["model"]["models"]))
        ]


def test_other_training_seeds_are_trained_once_by_the_committed_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []

    def train(command: Sequence[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        recipe = replace(RECIPES["tiny-moe"], seed=int(command[command.index("--seed") + 1]))
        (out / "training.json").write_text(json.dumps({"recipe": recipe.as_dict()}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", train)
    assert trained("tiny-moe", 0, tmp_path) == ROOT / "tests" / "fixtures" / "tiny-moe"
    assert not asked
    assert trained("tiny-moe", 2, tmp_path) == trained("tiny-moe", 2, tmp_path) == tmp_path / "seed-2" / "model"
    ((_, script, name, *_),) = asked
    assert (Path(script).is_file(), name) == (True, "tiny-moe")
    # One of another recipe is not taken for it.
    (tmp_path / "seed-2").rename(tmp_path / "seed-1")
    monkeypatch.setattr("subprocess.run", lambda command, check: subprocess.CompletedProcess(command, 1))
    with pytest.raises(click.ClickException, match="tiny-moe with seed 1 was not trained"):
        trained("tiny-moe", 1, tmp_path)


def test_a_missed_goal_says_by_how_much_and_which_tasks_miss_it() -> None:
    def kept(way: str, value: float) -> dict[str, Any]:
        tasks = {"add": {"retained": [100.0, 99.0, 100.0]}, "lang": {"retained": [value, 60.0, 80.0]}, "prose": {}}
        return {
            "way": way,
            "score": "impact",
            "allocation": "shared",
            "percent": 25.0,
            "retained": [value, value - 1, value + 1],
            "tasks": tasks,
            "held": {"add": 99.0, "lang": 81.5},
        }

    rows = [kept("own", 99.5), kept("served", 98.5)]
    text = goals({"tiny-moe": {"kept": rows, "contest": []}})
    met, missed = (line for line in text.splitlines() if line.startswith("| tiny-moe |"))
    assert "| 99.5 [98.5, 100.5] | met |  |" in met
    assert "missed by 0.5 (within the interval) | `lang` 98.5 (81.5); others (99) |" in missed
