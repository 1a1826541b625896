"""docs/evaluation.md says what its figures say, and which goals they miss."""

from __future__ import annotations

from typing import Any

import pytest
from evaluation_page import GOALS, PAGE, goals, known, page


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
