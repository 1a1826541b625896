"""Figures of a real evaluation as a page and as pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from premoe_local.evaluation.markdown import estimate, report, table
from premoe_local.evaluation.picture import pictures

FIGURES = Path(__file__).parents[3] / "docs" / "evaluation" / "tiny-moe.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FIGURES.read_text())
    return found


def test_a_page_has_every_section_and_only_whole_tables(document: dict[str, Any]) -> None:
    page = report(document, "a model", ["retained.png"])
    assert page.startswith("# What a model keeps\n")
    assert "![](retained.png)" in page
    for task in document["counted"]:
        assert f"| `{task}` |" in page
    for lead in document["contest"][0]["leads"]:
        assert f"**{estimate(lead['points'])} points**" in page
    blocks = [[line for line in part.splitlines() if line.startswith("|")] for part in page.split("\n\n")]
    for block in filter(None, blocks):
        assert len({line.count("|") for line in block}) == 1
    assert "None" not in page


def test_pictures_show_what_there_is(document: dict[str, Any]) -> None:
    made = pictures(document)
    assert list(made) == ["retained.png", "matrix.png"]
    assert all(image.startswith(b"\x89PNG") for image in made.values())
    assert pictures(document) == made
    assert pictures({**document, "counted": [], "matrix": None}) == {}


def test_estimates_and_tables_as_text() -> None:
    assert estimate([97.61, 96.94, 98.2]) == "97.6 [96.9, 98.2]"
    assert table(("a", "b"), [(1, "x")]) == "| a | b |\n|---|---|\n| 1 | x |"
