from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from premoe_worker.limits import Limits, check_limits, model_name

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput
from premoe_runtime.formats.manifest import ExpertLayer, Manifest, Origin


def manifest(url: str = "hf://org/tiny-moe@main", experts: tuple[int, ...] = (16, 16)) -> Manifest:
    """2 layers of 16 experts, top-4; nothing else is looked at."""
    layers = tuple(ExpertLayer.model_construct(digests=("",) * count) for count in experts)
    return Manifest.model_construct(
        top_k=4, num_layers=2, num_experts=16, layers=layers, model_id="ab" * 32, origin=Origin(url=url)
    )


GOOD: dict[str, tuple[dict[str, Any], Limits]] = {
    "kept and spare by default": ({"budget": "2/4"}, Limits(Budget(2, 4), Budget(2, 4), (6, 6), "generalist")),
    "never more than all experts": ({"budget": "4/15"}, Limits(Budget(4, 15), Budget(4, 15), (16, 16), "generalist")),
    "the larger budget counts": (
        {"budget": "2/4", "generalist_budget": "4/8"},
        Limits(Budget(2, 4), Budget(4, 8), (10, 10), "generalist"),
    ),
    "full with a slot for each": (
        {"budget": "2/4", "slots": 16, "on_unknown": "full"},
        Limits(Budget(2, 4), Budget(2, 4), (16, 16), "full"),
    ),
}

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "syntax": ({"budget": "four"}, InvalidInput, "not of the form a/b"),
    "a > top-k": ({"budget": "5/8"}, InvalidInput, "the model's top-k is 4"),
    "b < a": ({"budget": "4/2"}, InvalidInput, "b must be at least 4"),
    "b > experts": ({"budget": "4/17"}, InvalidInput, "the model has 16"),
    "slots < b + spare": ({"budget": "2/4", "slots": 5}, InvalidInput, "give at least 6"),
    "slots < generalist's": ({"budget": "2/4", "generalist_budget": "4/8", "slots": 6}, InvalidInput, "at least 10"),
    "slots > experts": ({"budget": "2/4", "slots": 17}, InvalidInput, "give at most 16"),
    "full without slots": ({"budget": "2/4", "on_unknown": "full"}, Conflict, "give --slots 16"),
}


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
def test_limits_that_fit(case: tuple[dict[str, Any], Limits]) -> None:
    arguments, expected = case
    assert check_limits(manifest(), **{"spare": 2, "on_unknown": "generalist", **arguments}) == expected


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_limits_that_do_not(case: tuple[dict[str, Any], type[Exception], str]) -> None:
    arguments, kind, message = case
    with pytest.raises(kind, match=message) as caught:
        check_limits(manifest(), **{"spare": 2, "on_unknown": "generalist", **arguments})
    assert "\n" not in str(caught.value)


UNEVEN: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "others get what a short layer cannot use": ({"budget": "4/8"}, (14, 6), 2),
    "uniform, they do not": ({"budget": "4/8", "allocation": "uniform"}, (10, 6), 0),
    "nothing lacks room": ({"budget": "2/4"}, (6, 6), 2),
    "all experts": ({"budget": "4/12"}, (16, 6), 0),
    "full": ({"budget": "2/4", "slots": 11, "on_unknown": "full"}, (16, 6), 7),
}


@pytest.mark.parametrize("case", UNEVEN.values(), ids=UNEVEN.keys())
def test_layers_of_16_and_6_experts_have_slots_for_no_more(case: tuple[dict[str, Any], tuple[int, ...], int]) -> None:
    arguments, slots, spare = case
    found = check_limits(manifest(experts=(16, 6)), **{"spare": 2, "on_unknown": "generalist", **arguments})
    assert (found.slots, found.spare) == (slots, spare)
    with pytest.raises(Conflict, match="give --slots 16"):
        check_limits(
            manifest(experts=(16, 6)), budget="2/4", spare=2, on_unknown="full", allocation="uniform", slots=11
        )


def limits(budget: str = "2/4") -> Limits:
    return check_limits(manifest(), budget=budget, spare=2, on_unknown="generalist")


def test_a_set_spreads_the_same_slots_over_the_layers() -> None:
    found = limits()
    assert (found.kept, found.spare) == (4, 2)
    split = found.split([9, 3])
    assert split == replace(found, slots=(9, 3))
    assert (split.kept, split.spare) == (4, 2)


@pytest.mark.parametrize(
    ("slots", "kind", "message"),
    [
        ((4, 4, 4), CorruptData, "12 slots over 3 layers, but this worker has 12 in 2"),
        ((9, 4), CorruptData, "13 slots over 2 layers, but this worker has 12 in 2"),
        ((11, 1), Conflict, "leaves MoE layer 1 1 slots, but budget 2/4 activates 2 experts"),
    ],
)
def test_splits_that_do_not_fit_this_worker(slots: tuple[int, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        limits().split(slots)


@pytest.mark.parametrize(
    ("url", "given", "expected"),
    [
        ("hf://org/tiny-moe@main", "", "tiny-moe"),
        ("file:///models/tiny-moe/", "", "tiny-moe"),
        ("", "", "ab" * 6),
        ("hf://org/tiny-moe", "mine", "mine"),
    ],
)
def test_model_name(url: str, given: str, expected: str) -> None:
    assert model_name(manifest(url), given) == expected
