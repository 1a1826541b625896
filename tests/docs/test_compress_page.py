"""docs/compress.md lists the registry's methods and says what its figures say."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from compression_page import FIGURES, PAGE, known, marked, page
from premoe_local.compress.compare_report import report

from premoe_runtime.compress.registry import METHODS


def test_the_page_is_made_of_the_registry_and_its_figures() -> None:
    text = PAGE.read_text()
    assert text == page(text, known()), "stale; run: python tools/compression_page.py --page-only"


def test_every_method_has_a_section() -> None:
    titles = [line.removeprefix("## ") for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    assert set(METHODS) <= set(titles)


def test_figures_have_the_peers_and_no_path_of_a_machine() -> None:
    for path in FIGURES.glob("*.json"):
        document = json.loads(path.read_text())
        for budget in document["budgets"]:
            assert {"random", "select"} <= {one["name"] for one in budget["entrants"]}
        assert str(Path.home()) not in path.read_text()
        assert "None" not in report(document)


def test_a_part_without_its_marks_is_not_written() -> None:
    text = "a <!-- x: python tools/compression_page.py --> old <!-- end of x --> b"
    assert marked(text, "x", "new").split() == text.replace("old", "new").split()
    with pytest.raises(click.ClickException, match="has the marks of y 0 times"):
        marked(text, "y", "new")
