from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_expert_store.cache.admission import (
    HALF_LIFE_S,
    PATTERN_HALF_LIVES,
    Candidate,
    Use,
    room_below,
    victims,
)

times = st.lists(st.floats(0, 1e6), min_size=1, max_size=20).map(sorted)
candidates = st.lists(
    st.builds(
        Candidate,
        st.text("0123456789abcdef", min_size=8, max_size=8),
        st.integers(1, 1000),
        st.floats(-1e6, 1e6),
        st.booleans(),
    ),
    max_size=30,
    unique_by=lambda one: one.digest,
)


def used(at: list[float], share: float = 0.0) -> Use:
    use = Use.first(at[0], share)
    for now in at[1:]:
        use = use.again(now)
    return use


@given(times)
def test_a_sum_of_uses_fades_by_half_each_half_life(at: list[float]) -> None:
    now = at[-1]
    faded = sum(2.0 ** ((one - now) / HALF_LIFE_S) for one in at)
    assert used(at).fame == pytest.approx(math.log2(faded) + now / HALF_LIFE_S, abs=1e-6)


@given(times, st.floats(0, 1e6))
def test_another_use_is_worth_more_whenever_it_was(at: list[float], more: float) -> None:
    use = used(at)
    assert use.again(more).worth >= use.worth
    assert used(at).again(at[-1]).worth == pytest.approx(use.worth, abs=1.0 + 1e-9)


@given(times, st.floats(0, 1), st.floats(0, 1))
def test_more_patterns_are_worth_more(at: list[float], one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert used(at, less).worth <= used(at, more).worth
    assert used(at, 1.0).worth - used(at).worth == pytest.approx(PATTERN_HALF_LIVES)


@given(st.floats(0.2, 1), st.floats(0, 1e6))
def test_blobs_of_patterns_outlast_others_that_were_read_once_long_after(share: float, now: float) -> None:
    later = now + 0.99 * share * PATTERN_HALF_LIVES * HALF_LIFE_S
    assert Use.first(now, share).worth > Use.first(later).worth


@given(candidates, st.integers(-10, 20_000))
def test_victims_are_the_least_worth_and_no_more_than_needed(found: list[Candidate], needed: int) -> None:
    chosen = victims(found, needed)
    by_digest = {one.digest: one for one in found}
    freed = [by_digest[digest].num_bytes for digest in chosen]
    assert len(set(chosen)) == len(chosen)
    assert sum(freed) >= needed or len(chosen) == len(found)
    assert not chosen or sum(freed[:-1]) < needed
    kept = [one for one in found if one.digest not in chosen]
    order = [(by_digest[digest].leased, by_digest[digest].worth) for digest in chosen]
    assert order == sorted(order)
    assert all((one.leased, one.worth) >= last for one in kept for last in order[-1:])


@given(candidates, st.floats(-1e6, 1e6))
def test_who_is_not_waited_for_takes_from_nobody_better(found: list[Candidate], worth: float) -> None:
    room = room_below(found, worth)
    chosen = victims([one for one in found if not one.leased], room)
    by_digest = {one.digest: one for one in found}
    assert all(by_digest[digest].worth < worth for digest in chosen)
