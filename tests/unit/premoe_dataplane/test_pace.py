"""Bytes a second, over any way of taking them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from premoe_dataplane.pace import Pace


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 1000)), min_size=1, max_size=30))
def test_no_more_than_the_rate_comes_through(steps: list[tuple[float, int]]) -> None:
    now = [0.0]
    pace, taken = Pace(100, lambda: now[0]), 0
    begun = None
    for pause, num_bytes in steps:
        now[0] += pause
        begun = now[0] if begun is None else begun
        now[0] += pace.delay(num_bytes)
        taken += num_bytes
        assert taken <= 100 * (now[0] - begun) + 1e-6


def test_without_a_rate_nobody_waits() -> None:
    assert Pace(None).delay(1 << 40) == 0
