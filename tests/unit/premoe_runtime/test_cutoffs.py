"""Cutoffs, the space that signatures are compared in, and how well a set says it tells its tasks apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.profiles import EXPERTS, profile

from premoe_runtime.formats.arrays import F32, F64
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import recognise
from premoe_runtime.formats.signature import unit
from premoe_runtime.formats.space import Space
from premoe_runtime.offline.patterns.build import BuildOptions, build_set, placed
from premoe_runtime.offline.patterns.cutoffs import (
    GROUPS,
    Tightness,
    centre_of,
    cutoff_of,
    groups_of,
    scores_as_new,
)
from premoe_runtime.offline.patterns.tellable import WIDEST, TaskVectors, space_for, tell

TIGHT = Tightness(quantile=0.95, wide_quantile=0.8, margin=0.25)


def rows(draw: np.random.Generator, centre: F64, spread: F64 | float, count: int = 60) -> F32:
    return unit((centre + spread * draw.normal(size=(count, len(centre)))).astype(np.float32))


SCORES = st.lists(st.floats(-1, 1), min_size=1, max_size=200).map(np.array)


@example(np.array([1.0, 1.0, 7e-168]), np.array([0.0]), 0.75, 0.5, 0.0)
@given(SCORES, SCORES, st.floats(0.5, 0.999), st.floats(0.5, 0.999), st.floats(0, 0.99))
def test_a_cutoff_recognises_its_quantile_and_stays_on_its_side(
    own: F64, others: F64, quantile: float, wide: float, margin: float
) -> None:
    cutoff = cutoff_of(own, others, Tightness(quantile, wide, margin))
    nearest = float(np.quantile(others, 0.99))
    lowest = float(np.quantile(own, 1 - quantile, method="lower"))
    assert np.mean(own >= cutoff - 1e-9) >= min(quantile, wide) - 1e-9
    # Compared as the distances that cutoffs are made of, where the smallest differences of scores vanish.
    if 1.0 - nearest > 1.0 - lowest:
        assert nearest - 1e-9 <= cutoff <= lowest + 1e-9
    else:
        assert cutoff >= lowest - 1e-9


def test_cutoffs_give_narrow_tasks_room_and_wide_ones_less() -> None:
    own = np.linspace(0.99, 0.9, 100)
    options = Tightness(quantile=0.98, wide_quantile=0.8, margin=0.5)
    assert cutoff_of(own, np.zeros(0), options) == pytest.approx(np.quantile(own, 0.02, method="lower"))
    # Geometric mean of the distances 0.1 (own) and 0.9 (others).
    assert cutoff_of(np.array([0.9]), np.array([0.1]), options) == pytest.approx(1 - (0.1 * 0.9) ** 0.5)
    assert cutoff_of(own, np.array([0.95]), options) == pytest.approx(np.quantile(own, 0.2, method="lower"))


def test_prompts_that_are_alike_are_one_group() -> None:
    draw = np.random.default_rng(0)
    wordings = [rows(draw, np.eye(GROUPS)[axis], 0.01, count=6) for axis in range(GROUPS)]
    groups = groups_of(np.concatenate(wordings))
    assert [len(set(groups[start : start + 6])) for start in range(0, 6 * GROUPS, 6)] == [1] * GROUPS
    assert len(set(groups)) == GROUPS
    assert np.array_equal(groups_of(np.concatenate(wordings)), groups)
    assert set(groups_of(wordings[0])) == {0}, "too few for several"


def test_a_prompt_is_scored_without_the_exemplars_like_it() -> None:
    draw = np.random.default_rng(0)
    one, other = (rows(draw, np.eye(4)[axis], 0.001, count=5) for axis in (0, 1))
    vectors = np.concatenate([one, other])
    scores = scores_as_new(vectors, np.arange(0, 10, 2), 2)
    assert np.allclose(scores, 0, atol=0.01), "only the other wording's exemplars count"
    alike = scores_as_new(one, np.arange(5), 4)
    assert np.allclose(alike, 1, atol=0.01), "where there is one wording, only the prompt itself is left out"


def tasks_of(draw: np.random.Generator, spread: F64 | float, centres: F64) -> list[TaskVectors]:
    return [TaskVectors(rows(draw, centre, spread), np.arange(0, 60, 2)) for centre in centres]


def test_what_a_set_says_of_itself() -> None:
    draw = np.random.default_rng(0)
    apart = tell(tasks_of(draw, 0.01, np.eye(8)[:3]), 5, TIGHT)
    assert apart.recognised >= 0.9
    assert apart.abstained == 1
    same = tell(tasks_of(draw, 0.3, np.ones((3, 8))), 5, TIGHT)
    assert same.recognised < 0.7
    assert same.abstained < 0.5
    assert tell(tasks_of(draw, 0.01, np.eye(8)[:1]), 5, TIGHT).abstained == 1


def test_a_prompt_is_scored_by_the_centre_of_the_wordings_it_is_unlike() -> None:
    draw = np.random.default_rng(0)
    one, other = (rows(draw, np.eye(4)[axis], 0.001, count=5) for axis in (0, 1))
    scores = scores_as_new(np.concatenate([one, other]), None, 5)
    assert np.allclose(scores, 0, atol=0.01), "the centre of the other wording alone"
    assert np.allclose(scores_as_new(one, None, 5), (one @ centre_of(one).T)[:, 0]), "one wording has no other"


def test_tasks_are_told_apart_in_a_space_where_what_differs_within_all_of_them_counts_for_less() -> None:
    loud = np.array([4.0, 4.0, 4.0, 0.1, 0.1, 0.1, 0.1, 0.1])
    draw = np.random.default_rng(0)
    signatures = [rows(draw, centre, loud) for centre in 2 * np.eye(8)[3:8]]
    space, found = placed(signatures, None)
    assert space is not None
    assert all(task.exemplars.shape == (1, 8) and task.held_out == 60 for task in found)
    telling, plain = (tell(tasks, 5, TIGHT) for tasks in (found, [TaskVectors(one) for one in signatures]))
    assert telling.recognised + telling.abstained > plain.recognised + plain.abstained + 0.2


def test_a_single_task_and_long_signatures_are_compared_as_they_are_with_stored_prompts() -> None:
    draw = np.random.default_rng(0)
    space, (one,) = placed([rows(draw, np.eye(8)[0], 0.1)], None)
    assert space is None, "seen from its own mean a task lies in no direction"
    assert (len(one.exemplars), one.held_out) == (30, 30)
    assert space_for([np.zeros((9, WIDEST + 1), np.float32)] * 2) is None, "axes would take too much room"
    space, few = placed([rows(draw, np.eye(8)[axis], 0.1) for axis in (0, 1)], 5)
    assert space is not None
    assert [len(each.exemplars) for each in few] == [5, 5]


def test_a_set_of_several_tasks_stores_their_centres_and_recognises_by_them() -> None:
    tasks = ("add", "rev", "json")
    profiles = [profile(task, prompts=60) for task in tasks]
    found = build_set(profiles).pattern_set
    assert found.document.format == "premoe-pattern-set/2"
    assert [member.exemplars for member in found.specialists] == [1, 1, 1]
    assert all(member.held_out == 60 for member in found.specialists)
    right = [recognise(found, row).task == one.task for one in profiles for row in one.signatures]
    assert np.mean(right) > 0.95
    stored = build_set(profiles, BuildOptions(exemplars=16)).pattern_set
    assert [member.exemplars for member in stored.specialists] == [16, 16, 16]


def spaced() -> PatternSet:
    found = build_set([profile(task, prompts=60) for task in ("add", "rev", "json")]).pattern_set
    space = Space(np.full(EXPERTS, 0.25, np.float32), (2 * np.eye(EXPERTS)).astype(np.float32))
    return PatternSet.make(found.document, space.of(found.exemplars), found.splits, space)


def test_a_set_with_a_space_keeps_it_and_compares_in_it() -> None:
    found = spaced()
    assert found.document.format == "premoe-pattern-set/2"
    again = PatternSet.from_files(*found.to_files())
    assert again.space is not None
    assert again.set_id == found.set_id
    rejecting = again.under(again.document.model_copy(update={"on_unknown": "reject"}))
    assert rejecting.space is again.space
    assert rejecting.document.exemplars_digest == found.document.exemplars_digest
    signature = unit(np.arange(1, EXPERTS + 1, dtype=np.float32))
    assert np.allclose(again.embed(signature), unit((signature - 0.25) * 2))
    assert recognise(again, signature).score == pytest.approx(recognise(found, signature).score)


def test_a_set_of_before_is_read_and_keeps_its_id() -> None:
    built = build_set([profile(task, prompts=60) for task in ("add", "rev")]).pattern_set
    plain = PatternSet.make(built.document.model_copy(update={"expected": None}), built.exemplars)
    document, exemplars = plain.to_files()
    assert plain.document.format == "premoe-pattern-set/1"
    assert b"expected" not in document
    assert PatternSet.from_files(document, exemplars).set_id == plain.set_id


@pytest.mark.parametrize(
    ("centre", "axes", "says"),
    [
        (np.zeros(EXPERTS), np.eye(EXPERTS + 1), "axes of"),
        (np.zeros(3), np.eye(3), "none of its signatures"),
        (np.full(EXPERTS, np.nan), np.eye(EXPERTS), "not finite"),
    ],
)
def test_a_damaged_space_is_refused(centre: F64, axes: F64, says: str) -> None:
    found = spaced()
    space = Space(centre.astype(np.float32), axes.astype(np.float32))
    with pytest.raises(CorruptData, match=says):
        PatternSet.make(found.document, found.exemplars, None, space)
    plain, with_space = PatternSet.make(found.document, found.exemplars), found.to_files()
    with pytest.raises(CorruptData, match="does not match the digest"):
        PatternSet.from_files(with_space[0], plain.to_files()[1])
