"""Which experts are a task's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.domains import FACTOR, MOST, Domains, share
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import RouterSpec

ROUTER = RouterSpec(score="softmax", renormalise=True)


@st.composite
def domains(draw: st.DrawFn) -> Domains:
    """Any scores of two to four tasks, in groups or not, some layers with fewer experts where there are none."""
    layers, groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 5))
    shape = (layers, groups * size)
    value = st.one_of(st.just(0.0), st.floats(-1, 1e6, width=32), st.sampled_from([1.0, 1000.0]))
    names = draw(st.sampled_from(["ab", "abc", "abcd"]))
    scores = {name: draw(arrays(np.float64, shape, elements=value)) for name in names}
    if groups == 1:
        for layer in range(layers):
            lacking = draw(st.integers(0, size - 1))
            for each in scores.values():
                each[layer, size - lacking :] = -np.inf
    return Domains(scores, draw(st.integers(0, size)), groups, draw(st.booleans()))


def own(found: Domains, tasks: str, **bounds: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None:
    try:
        return found.own(tuple(tasks), **bounds)
    except InvalidInput:
        return None


@settings(max_examples=60, deadline=None)
@given(domains())
def test_what_is_denied_the_task_needs_more_than_any_other_and_no_other_needs_it(found: Domains) -> None:
    mask = own(found, "a")
    if mask is None:
        return
    shares = {task: share(each, shared=found.shared) for task, each in found.scores.items()}
    others = np.max([each for task, each in shares.items() if task != "a"], axis=0)
    assert (shares["a"][mask] > FACTOR * others[mask]).all()
    assert (others[mask] <= MOST).all()
    assert (found.scores["a"][mask] > 0).all()


@settings(max_examples=60, deadline=None)
@given(domains(), st.sampled_from([0.5, 1.0, 3.0]))
def test_every_group_keeps_what_a_token_needs(found: Domains, factor: float) -> None:
    mask = own(found, "a", factor=factor, most=np.inf)
    if mask is None:
        return
    exists = found.scores["a"] > -np.inf
    there = exists.reshape(len(mask), found.groups, -1).sum(axis=-1)
    left = (exists & ~mask).reshape(len(mask), found.groups, -1).sum(axis=-1)
    assert (left >= np.minimum(found.least, there)).all()


@settings(max_examples=60, deadline=None)
@given(domains(), st.sampled_from([1 / 1024, 8.0]))
def test_the_scale_of_a_tasks_scores_says_nothing(found: Domains, scale: float) -> None:
    scaled = replace(found, scores={**found.scores, "b": found.scores["b"] * scale})
    first, second = own(found, "a"), own(scaled, "a")
    assert (first is None and second is None) or np.array_equal(first, second)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(domains())
def test_tasks_own_apart_and_more_together(found: Domains) -> None:
    """No expert is two tasks' own, and denying one more task gives nothing back."""
    found = replace(found, least=0)
    one, other = own(found, "a", most=np.inf), own(found, "b", most=np.inf)
    if one is None or other is None:
        return
    assert not (one & other).any()
    if (both := own(found, "ab", most=np.inf)) is not None:
        assert not ((one | other) & ~both).any()


def test_of_a_group_that_would_keep_too_few_those_stay_that_others_need_most() -> None:
    scores: dict[str, F64] = {"a": np.full((1, 8), 10.0), "b": np.array([[0.0, 0, 1, 2, 0, 0, 0, 1e4]])}
    assert Domains(scores, 0).own(["a"]).tolist() == [[True] * 7 + [False]]
    assert Domains(scores, 2).own(["a"]).tolist() == [[True, True, True, False, True, True, True, False]]
    assert Domains(scores, 2, 2).own(["a"]).tolist() == [[True, True, False, False, False, True, True, False]]


@pytest.mark.parametrize(
    ("router", "least", "groups"),
    [
        (ROUTER, 4, 1),
        (ROUTER.model_copy(update={"groups": 8, "chosen_groups": 4}), 1, 8),
        (ROUTER.model_copy(update={"groups": 8, "chosen_groups": 3}), 2, 8),
    ],
)
def test_whatever_groups_a_router_chooses_a_token_finds_its_experts(
    router: RouterSpec, least: int, groups: int
) -> None:
    found = Domains.of({}, router, 4, shared=True)
    assert (found.least, found.groups) == (least, groups)


ALIKE = {"a": np.ones((2, 4)), "b": np.ones((2, 4)), "c": np.eye(2, 4)}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("zzz",), "deny: the live pattern set has no task 'zzz'; it has a, b, c"),
        (("a", "b", "c"), "deny: these are all tasks of the live pattern set; there is no other"),
        (("a",), "deny: no expert is 'a''s own"),
    ],
)
def test_what_cannot_be_denied_is_said(tasks: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message.replace("(", r"\(")) as caught:
        Domains(ALIKE, 1).own(tasks)
    assert caught.value.reason == "DENY_INVALID"
    assert "\n" not in str(caught.value)


def test_layers_count_alike_where_scores_do_not_compare() -> None:
    scores = np.array([[1.0, 3.0], [100.0, 300.0]])
    assert share(scores, shared=False).tolist() == [[0.5, 1.5], [0.5, 1.5]]
    assert share(scores).mean() == pytest.approx(1.0)
    assert share(np.full((1, 2), -np.inf)).tolist() == [[0.0, 0.0]]
