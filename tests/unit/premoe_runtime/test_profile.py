from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.profiles import EXPERTS, LAYERS, ROUTER, TOP_K, accumulated, logits, profile, routed

from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.offline.patterns.derive import generalist, specialist
from premoe_runtime.offline.profile.accumulator import ProfileAccumulator
from premoe_runtime.offline.profile.criteria.router import threshold_bins
from premoe_runtime.offline.profile.record import Profile, merge, profile_path
from premoe_runtime.offline.profile.scores import counts, retained_mass, scores
from premoe_runtime.offline.profile.state import MASS, ProfileState, pooled


def same(one: ProfileState, other: ProfileState) -> bool:
    return one.sums.keys() == other.sums.keys() and all(np.array_equal(one[s], other[s]) for s in one.sums)


def test_sums_equal_a_plain_reading_of_the_formulas() -> None:
    tokens = logits(200)
    state = accumulated([tokens], layers=1)
    _, ids, weights = routed(tokens.double())
    s = tokens.double().gather(1, ids)
    p = s.exp() / s.exp().sum(1, keepdim=True)
    utility, seer, top = np.zeros(EXPERTS), np.zeros(EXPERTS), np.zeros(EXPERTS)
    threshold = threshold_bins(state)[0] / 256
    assert abs(threshold - float(p.max(1).values.mean())) <= 0.5 / 256
    for token in range(200):
        for rank in range(TOP_K):
            expert = int(ids[token, rank])
            seer[expert] += float(weights[token, rank])
            if float(p[token, rank]) >= threshold:
                logit = float(s[token, rank])
                utility[expert] += max(logit, 1 / (1 + np.exp(-logit)))
        top[int(tokens[token].argmax())] += float(tokens[token].max())
    assert np.allclose(scores(state, "peu")[0], utility / 200, atol=1e-6)
    assert np.allclose(scores(state, "seer")[0], seer / 200, atol=1e-6)
    assert np.allclose(scores(state, "tcess")[0], top / 200, atol=1e-6)
    assert counts(state)[0].tolist() == torch.bincount(ids.flatten(), minlength=EXPERTS).tolist()
    assert np.allclose(state[MASS][0], torch.softmax(tokens.double(), 1).sum(0).numpy(), atol=1e-4)


def test_negative_logits_never_fall_below_an_idle_expert_in_peu_but_do_in_tcess() -> None:
    # Expert 0 is always first with a negative logit; 2 to 7 are never chosen.
    tokens = torch.full((50, EXPERTS), -9.0)
    tokens[:, 0], tokens[:, 1] = -1.0, -6.0
    state = accumulated([tokens], layers=1)
    assert scores(state, "peu")[0, 0] > 0 == scores(state, "peu")[0, 2]
    assert scores(state, "tcess")[0, 0] < 0 == scores(state, "tcess")[0, 2]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=6),
    st.integers(0, 2**31),
    st.data(),
)
def test_any_cut_and_order_of_batches_gives_the_same_bits(sizes: list[int], seed: int, data: st.DataObject) -> None:
    batches = [logits(size, seed=seed + index) * 10 for index, size in enumerate(sizes)]
    whole = accumulated(batches)
    cut = data.draw(st.integers(1, len(batches) - 1))
    order = data.draw(st.permutations(batches))
    parts = pooled([accumulated(order[:cut]), accumulated(order[cut:])])
    assert same(whole, parts)
    together = accumulated([torch.cat(batches)])
    assert same(whole, together)
    for metric in ("peu", "seer", "tcess", "counts"):
        assert np.array_equal(scores(whole, metric), scores(parts, metric))


def test_merged_halves_rank_like_one_pass() -> None:
    batches = [logits(30, seed=index) for index in range(4)]
    one = profile()
    whole = replace(one, state=accumulated(batches))
    halves = [replace(one, state=accumulated(part)) for part in (batches[:2], batches[2:])]
    assert np.array_equal(specialist(merge(halves)).ranking, specialist(whole).ranking)
    assert merge(halves).samples == 2 * one.samples
    assert len(merge(halves).signatures) == 2 * len(one.signatures)


def test_the_generalist_pools_tasks_whatever_their_length() -> None:
    small = replace(profile("a"), state=accumulated([logits(5, seed=1)]))
    large = replace(profile("b"), state=accumulated([logits(500, seed=2)]))
    pool = generalist([small, large])
    expected = (scores(small.state, "peu") + scores(large.state, "peu")) / 2
    assert np.array_equal(pool.scores, expected.astype(np.float32))


def test_top_one_routing_always_passes_the_threshold() -> None:
    accumulator = ProfileAccumulator(1, EXPERTS, ROUTER)
    tokens = logits(20)
    accumulator.add(0, *routed(tokens, top_k=1))
    assert (scores(accumulator.state(), "peu")[0] > 0).sum() == len(set(tokens.argmax(1).tolist()))


def test_retained_mass_is_one_for_all_and_grows_with_the_kept_set() -> None:
    state = accumulated([logits(50)])
    everything = np.ones((LAYERS, EXPERTS), np.bool_)
    assert retained_mass(state, everything) == pytest.approx(1)
    some = everything.copy()
    some[:, :3] = False
    assert 0 < retained_mass(state, some) < 1


def test_random_scores_follow_the_seed_only() -> None:
    one, other = accumulated([logits(10)]), accumulated([logits(10, seed=5)])
    assert np.array_equal(scores(one, "random", seed=3), scores(other, "random", seed=3))
    assert not np.array_equal(scores(one, "random", seed=3), scores(one, "random", seed=4))


def test_bad_router_outputs_are_refused() -> None:
    accumulator = ProfileAccumulator(1, EXPERTS, ROUTER)
    tokens, ids, weights = routed(logits(4))
    with pytest.raises(CorruptData, match="not finite"):
        accumulator.add(0, tokens * torch.inf, ids, weights)
    with pytest.raises(InvalidInput, match="every expert resident"):
        accumulator.add(0, tokens, torch.full_like(ids, EXPERTS), weights)
    with pytest.raises(InvalidInput, match="no tokens"):
        scores(accumulator.state(), "peu")


def test_a_profile_file_comes_back_as_it_was() -> None:
    value = profile()
    data = value.to_bytes()
    again = Profile.from_bytes(data)
    assert again.to_bytes() == data
    assert again.profile_id == value.profile_id
    assert same(again.state, value.state)
    assert np.array_equal(again.signatures, value.signatures)
    assert (again.task, again.top_k, again.calibration, again.signature) == (
        value.task,
        value.top_k,
        value.calibration,
        value.signature,
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4000), st.integers(0, 255))
def test_a_damaged_profile_is_refused_or_has_another_id(position: int, byte: int) -> None:
    value = profile(prompts=2)
    data = bytearray(value.to_bytes())
    data[position % len(data)] = byte
    if bytes(data) == value.to_bytes():
        return
    with pytest.raises(CorruptData):
        Profile.load(lambda path: bytes(data), value.profile_id)
    with suppress(CorruptData):
        Profile.from_bytes(bytes(data))


def test_truncated_and_absent_profiles() -> None:
    value = profile()
    data = value.to_bytes()
    for size in (0, 7, 100, len(data) - 1):
        with pytest.raises(CorruptData):
            Profile.from_bytes(data[:size])

    def absent(path: str) -> bytes:
        raise NotFound(path)

    with pytest.raises(NotFound, match=profile_path("abc")):
        Profile.load(absent, "abc")


def test_profiles_of_other_weights_tasks_or_settings_do_not_merge() -> None:
    with pytest.raises(InvalidInput, match="belongs to weights") as caught:
        merge([profile(), profile(weights_id="v" * 64)])
    assert caught.value.reason == "WEIGHTS_MISMATCH"
    with pytest.raises(InvalidInput, match="tasks add and sub do not merge"):
        merge([profile("add"), profile("sub")])
    other = replace(profile(), top_k=TOP_K + 1)
    with pytest.raises(InvalidInput, match="different settings"):
        merge([profile(), other])
    with pytest.raises(InvalidInput, match="do not merge"):
        pooled([accumulated([logits(3)]), accumulated([logits(3)], layers=1)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_signatures_that_are_not_finite_are_refused(value: float) -> None:
    made = profile()
    made.signatures[3, 2] = value
    with pytest.raises(CorruptData, match=r"signatures are not finite; remove it .* and profile the task again"):
        Profile.from_bytes(made.to_bytes())
