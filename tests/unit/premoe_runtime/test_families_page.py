"""The page of model families is what the specs say."""

from __future__ import annotations

import families_page
import pytest

from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.formats.manifest import RouterSpec


def test_the_page_is_up_to_date() -> None:
    assert families_page.PAGE.read_text() == families_page.page(), "run: python tools/families_page.py"


def test_every_family_is_named_with_the_models_that_people_know() -> None:
    page = families_page.page()
    for name in FAMILIES:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(cell.strip() for cell in row.strip("|").split("|"))


@pytest.mark.parametrize(
    ("router", "words"),
    [
        (RouterSpec(score="softmax", renormalise=False, scale=2.0), "softmax, not renormalised, × 2"),
        (RouterSpec(score="topk_softmax", renormalise=False), "top-k, then softmax"),
        (
            RouterSpec(score="softmax", renormalise=True, groups=8, chosen_groups=3, group_score="max"),
            "softmax, from 3 of 8 groups by their best, renormalised",
        ),
    ],
)
def test_routers_in_words(router: RouterSpec, words: str) -> None:
    assert families_page.arithmetic(router) == words
