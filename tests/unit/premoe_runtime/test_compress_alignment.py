"""Neurons have no order: a permuted copy is found exactly, and merging an expert with its copies gives it back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from premoe_runtime.compress.alignment import aligned
from premoe_runtime.compress.plan import Made, experts_of
from premoe_runtime.compress.weights import ExpertWeights, rows


def drawn(seed: int, count: int, width: int, hidden: int, biases: bool = False) -> ExpertWeights:
    random = torch.Generator().manual_seed(seed)
    gate, up = torch.randn(2, count, width, hidden, generator=random)
    down = torch.randn(count, hidden, width, generator=random)
    if not biases:
        return ExpertWeights(gate, up, down)
    gate_bias, up_bias = torch.randn(2, count, width, generator=random)
    return ExpertWeights(gate, up, down, gate_bias, up_bias, torch.randn(count, hidden, generator=random))


def copies(one: ExpertWeights, orders: list[np.ndarray]) -> ExpertWeights:
    """Expert 0, then it again with its neurons in each of these orders."""
    made = (Made.kept(0), *(Made.kept(0, order) for order in orders))
    return experts_of((Made.kept(0, np.arange(one.width)), *made[1:]), one)


@given(seed=st.integers(0, 2**16), width=st.integers(1, 12), biases=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_permuted_copy_is_found_exactly(seed: int, width: int, biases: bool) -> None:
    one = drawn(seed, 1, width, 5, biases)
    order = np.random.default_rng(seed).permutation(width)
    found = aligned(copies(one, [order]), [0, 1])
    assert found[0].tolist() == list(range(width))
    assert found[1].tolist() == np.argsort(order).tolist()


def test_merging_an_expert_with_its_own_copies_gives_it_back() -> None:
    one = drawn(3, 1, 8, 6, biases=True)
    draw = np.random.default_rng(3)
    both = copies(one, [draw.permutation(8) for _ in range(3)])
    merged = experts_of((Made(np.arange(4), np.array([0.4, 0.3, 0.2, 0.1]), aligned(both, range(4))),), both)
    halves = experts_of((Made(np.arange(2), np.array([0.5, 0.5]), aligned(both, range(2))),), both)
    for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"):
        torch.testing.assert_close(getattr(merged, name)[0], getattr(one, name)[0])
        assert torch.equal(getattr(halves, name)[0], getattr(one, name)[0]), name  # halves round nothing


def test_no_swap_of_two_neurons_would_be_nearer() -> None:
    weights = drawn(5, 2, 6, 4)
    order = aligned(weights, [0, 1])[1]
    first, second = rows(weights, [0]), rows(weights, [1])

    def distance(order: np.ndarray) -> float:
        moved = experts_of((Made.kept(0, order),), second)
        return sum(
            float((getattr(first, name) - getattr(moved, name)).square().sum()) for name in ("gate", "up", "down")
        )

    best = distance(order)
    for a in range(6):
        for b in range(a):
            swapped = order.copy()
            swapped[[a, b]] = swapped[[b, a]]
            assert distance(swapped) > best == pytest.approx(best)
