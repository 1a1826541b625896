from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.profiles import EXPERTS, LAYERS, profile

from premoe_runtime.formats import arrays
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.ids import WeightsId
from premoe_runtime.formats.pattern import Pattern, pattern_path, rank
from premoe_runtime.offline.patterns.derive import generalist, mean_retained_mass, overlap, specialist

VALUES = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 2.0])
SHAPE = (2, 6)


def pattern(scores: object, tiebreak: object = None, counts: object = None) -> Pattern:
    values = np.asarray(scores, np.float64)
    return Pattern.from_scores(
        values,
        np.zeros(values.shape) if tiebreak is None else np.asarray(tiebreak, np.float64),
        np.zeros(values.shape, np.int64) if counts is None else np.asarray(counts, np.int64),
        weights_id=WeightsId("w"),
        task="add",
        kind="specialist",
        metric="peu",
        profiles=("b", "a"),
    )


def test_ties_go_to_seer_then_count_then_the_lower_id() -> None:
    value = pattern([[0, 5, 0, 0, 0, 0]], [[1, 0, 3, 1, 1, 0]], [[2, 0, 0, 9, 2, 0]])
    assert value.ranking.tolist() == [[1, 2, 3, 0, 4, 5]]


@given(
    hnp.arrays(np.float64, SHAPE, elements=VALUES),
    hnp.arrays(np.float64, SHAPE, elements=VALUES),
    hnp.arrays(np.int64, SHAPE, elements=st.integers(0, 2)),
)
def test_ranking_is_the_plain_sort_and_kept_sets_are_its_prefixes(
    scores: arrays.F64, tiebreak: arrays.F64, counts: arrays.I64
) -> None:
    value = pattern(scores, tiebreak, counts)
    for layer in range(SHAPE[0]):
        expected = sorted(range(SHAPE[1]), key=lambda e: (-scores[layer, e], -tiebreak[layer, e], -counts[layer, e], e))
        assert value.ranking[layer].tolist() == expected
    smaller = np.zeros(SHAPE, np.bool_)
    for kept in range(1, SHAPE[1] + 1):
        mask = value.kept(Budget(1, kept))
        assert (mask.sum(axis=1) == kept).all()
        assert (mask | smaller == mask).all()
        smaller = mask
    again = Pattern.from_bytes(value.to_bytes())
    assert again.to_bytes() == value.to_bytes()
    assert np.array_equal(again.ranking, value.ranking)


@given(hnp.arrays(np.float64, SHAPE, elements=VALUES), st.lists(st.integers(1, 6), min_size=1, max_size=1))
def test_experts_that_a_layer_lacks_are_ranked_last_and_never_kept(scores: arrays.F64, short: list[int]) -> None:
    experts = (6, *short)
    value = pattern(np.where(arrays.existing(experts), scores, -np.inf))
    assert value.layer_experts == experts
    again = Pattern.from_bytes(value.to_bytes())
    assert again.pattern_id == value.pattern_id
    for allocation in ("shared", "uniform"):
        for kept in range(1, 7):
            mask = replace(again, allocation=allocation).kept(Budget(1, kept))
            assert not (mask & ~arrays.existing(experts)).any()
            wanted = min(2 * kept, sum(experts)) if allocation == "shared" else sum(min(kept, own) for own in experts)
            assert mask.sum() == wanted


def test_more_experts_than_there_are_cannot_be_kept() -> None:
    value = pattern([[3, 2, 1], [1, 2, 3]])
    with pytest.raises(InvalidInput, match="the model has 3"):
        value.kept(Budget(1, 4))


def test_a_shared_budget_takes_the_best_of_all_layers_within_the_slots() -> None:
    value = replace(pattern([[9, 8, 7, 6], [5, 1, 0, 0]]), allocation="shared")
    assert value.kept(Budget(1, 2)).tolist() == [[True, True, True, False], [True, False, False, False]]
    assert value.kept(Budget(1, 2), [2, 4]).tolist() == [[True, True, False, False], [True, True, False, False]]
    with pytest.raises(InvalidInput, match="MoE layer 1 has room for 1 experts, but every token needs 2"):
        value.kept(Budget(2, 2), [4, 1])


def test_patterns_written_before_there_was_a_choice_are_uniform() -> None:
    value = pattern([[3, 2, 1]])
    assert b"allocation" not in value.to_bytes()
    assert Pattern.from_bytes(value.to_bytes()).allocation == "uniform"
    shared = replace(value, allocation="shared")
    assert Pattern.from_bytes(shared.to_bytes()).allocation == "shared"
    assert shared.pattern_id != value.pattern_id
    with pytest.raises(CorruptData, match="'allocation' is 'sharks', expected one of shared, uniform"):
        Pattern.from_bytes(shared.to_bytes().replace(b"shared", b"sharks"))


def test_a_pattern_comes_back_through_a_store_with_its_metadata() -> None:
    value = pattern([[3, 2, 1]])
    files = {pattern_path(value.pattern_id): value.to_bytes()}
    again = Pattern.load(files.__getitem__, value.pattern_id)
    assert (again.task, again.kind, again.metric, again.semantics, again.profiles, again.weights_id) == (
        "add",
        "specialist",
        "peu",
        "selection",
        ("a", "b"),
        "w",
    )
    with pytest.raises(CorruptData, match="does not match its id"):
        Pattern.load(lambda path: value.to_bytes(), "0" * 64)


def test_a_file_whose_ranking_is_not_the_scores_is_refused() -> None:
    value = pattern([[3, 2, 1]])
    tensors, metadata = arrays.decode(value.to_bytes(), where="x")
    tensors["ranking"] = tensors["ranking"][:, ::-1]
    with pytest.raises(CorruptData, match="ranking is not the order"):
        Pattern.from_bytes(arrays.encode(tensors, metadata))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"metric": "mag ic"}, "metadata 'metric' is 'mag ic', which is no name of a score"),
        ({"kind": ""}, "lacks 'kind'"),
        ({"semantics": "other"}, "expected one of selection, slice"),
        ({"profiles": "[1]"}, "not a list of ids"),
        ({"profiles": "{"}, "not JSON"),
        ({"weights_id": ""}, "lacks 'weights_id'"),
    ],
)
def test_bad_metadata_is_named(change: dict[str, str], what: str) -> None:
    tensors, metadata = arrays.decode(pattern([[3, 2, 1]]).to_bytes(), where="x")
    with pytest.raises(CorruptData, match=what):
        Pattern.from_bytes(arrays.encode(tensors, {**metadata, **change}), where="p")


def test_bad_arrays_are_named() -> None:
    tensors, metadata = arrays.decode(pattern([[3, 2, 1]]).to_bytes(), where="x")
    cases = {
        "arrays are": {"scores": tensors["scores"]},
        "'counts' has the wrong dtype or shape": {**tensors, "counts": tensors["counts"][:, :2]},
        "not finite": {**tensors, "scores": np.full((1, 3), np.nan, np.float32)},
        "without a score are not the last ones": {**tensors, "scores": np.array([[3, -np.inf, 1]], np.float32)},
        "last ones of some layers": {**tensors, "scores": np.array([[3, 2, -np.inf]], np.float32)},
        "not the last": {**tensors, "scores": np.full((1, 3), -np.inf, np.float32)},
    }
    for what, wrong in cases.items():
        with pytest.raises(CorruptData, match=what):
            Pattern.from_bytes(arrays.encode(wrong, metadata))


@settings(max_examples=300)
@given(st.binary(max_size=64), st.integers(0, 600))
def test_damaged_files_never_raise_anything_else(junk: bytes, position: int) -> None:
    data = pattern([[3, 2, 1], [1, 2, 3]]).to_bytes()
    damaged = data[:position] + junk + data[position + len(junk) :]
    for candidate in (damaged, junk, len(junk).to_bytes(8, "little") + junk):
        with suppress(CorruptData):
            Pattern.from_bytes(candidate)


def test_specialist_and_generalist_come_from_their_profiles() -> None:
    add, sub = profile("add"), profile("sub", seed=9)
    one, pool = specialist(add), generalist([add, sub])
    assert (one.task, one.kind, one.profiles) == ("add", "specialist", (add.profile_id,))
    assert (pool.task, pool.kind, set(pool.profiles)) == ("generalist", "generalist", {add.profile_id, sub.profile_id})
    assert pool.ranking.shape == (LAYERS, EXPERTS)
    assert specialist(add, "random", seed=1).ranking.tolist() != specialist(add, "random", seed=2).ranking.tolist()
    with pytest.raises(InvalidInput, match="belongs to weights"):
        generalist([add, profile("sub", weights_id="v" * 64)])


def test_overlap_and_mass_are_shares() -> None:
    patterns = [specialist(profile("add")), specialist(profile("sub", seed=9))]
    shares = overlap(patterns, Budget(1, 4))
    assert np.allclose(np.diag(shares), 1)
    both = (patterns[0].kept(Budget(1, 4)) & patterns[1].kept(Budget(1, 4))).sum() / (4 * LAYERS)
    assert shares[0, 1] == shares[1, 0] == pytest.approx(both)
    masses = [mean_retained_mass(patterns[0], [profile("add")], Budget(1, kept)) for kept in range(1, EXPERTS + 1)]
    assert masses == sorted(masses)
    assert masses[-1] == pytest.approx(1)


def test_rank_takes_ids_beyond_a_byte() -> None:
    shape = (1, 300)
    order = rank(np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.int64))
    assert order[0].tolist() == list(range(300))
