"""Spectral clusters: blocks are found, none is empty, and the order in which things are named decides nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from premoe_runtime.compress.clusters import spectral
from premoe_runtime.formats.arrays import F64


def blocks(sizes: list[int], seed: int) -> tuple[F64, list[int]]:
    """Likeness 1 ± 0.01 within blocks, 0.01 between them."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).random((len(labels), len(labels)))
    inside = labels[:, None] == labels[None, :]
    return np.where(inside, 1 - 0.005 * (noise + noise.T), 0.01), labels.tolist()


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_blocks_are_found_in_any_order(sizes: list[int], seed: int) -> None:
    likeness, labels = blocks(sizes, seed)
    assert spectral(likeness, len(sizes)).tolist() == labels
    order = np.random.default_rng(seed).permutation(len(labels))
    moved = spectral(likeness[np.ix_(order, order)], len(sizes))
    shuffled = np.array(labels)[order]
    assert np.array_equal(moved[:, None] == moved, shuffled[:, None] == shuffled)


@given(seed=st.integers(0, 999), things=st.integers(1, 12), data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_cluster_has_a_member_and_numbers_follow_first_members(
    seed: int, things: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, things))
    half = np.random.default_rng(seed).random((things, things))
    labels = spectral(half + half.T, count).tolist()
    assert sorted(set(labels)) == list(range(count))
    assert list(dict.fromkeys(labels)) == list(range(count))


def test_things_that_are_all_alike_or_not_at_all_still_make_clusters() -> None:
    for likeness in (np.ones((6, 6)), np.eye(6), np.zeros((6, 6))):
        assert sorted(set(spectral(likeness, 3).tolist())) == [0, 1, 2]
