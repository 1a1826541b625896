"""The page of all metrics is made from the code and up to date."""

from __future__ import annotations

import re

import metrics_page
import pytest


def test_the_page_is_up_to_date() -> None:
    assert metrics_page.PAGE.read_text() == metrics_page.page(), "run: python tools/metrics_page.py"


@pytest.mark.parametrize("title", metrics_page.SECTIONS)
def test_names_and_help_are_as_prometheus_wants_them(title: str) -> None:
    listed = metrics_page.listed(title)
    for name, metric in listed.items():
        assert re.fullmatch(r"(premoe:|premoe_operator_|process_)[a-z][a-z0-9_]*[a-z0-9]", name)
        assert not name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert metric.help.endswith("."), name
        assert len(metric.labels) <= 3


def test_no_two_processes_use_one_name_for_two_things() -> None:
    names = [name for title in metrics_page.SECTIONS for name in metrics_page.listed(title)]
    assert len(names) == len(set(names))
