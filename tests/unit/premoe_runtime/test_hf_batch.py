"""What a step runs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from premoe_runtime.engines.hf.batch import Pending, Share, plan_apart, plan_step


def pending(*remaining: int) -> list[Pending]:
    return [Pending(index, count) for index, count in enumerate(remaining)]


def test_a_long_prompt_goes_in_pieces_beside_decoding() -> None:
    plan = plan_step(pending(1, 1000, 1, 50), 64)
    assert plan.decode == (Share(0, 1), Share(2, 1))
    assert plan.prefill == (Share(1, 64),)


def test_short_prompts_share_a_forward() -> None:
    assert plan_step(pending(10, 9, 10, 12), 40).prefill == (Share(0, 10), Share(1, 9), Share(2, 10), Share(3, 10))


def test_a_short_prompt_is_not_padded_beyond_its_own_length() -> None:
    assert plan_step(pending(20, 5, 12), 64).prefill == (Share(0, 20), Share(2, 12))


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=20), st.integers(2, 128))
def test_bounds(remaining: list[int], budget: int) -> None:
    plan = plan_step(pending(*remaining), budget)
    shares = [share for forward in plan.forwards for share in forward]
    assert len({share.index for share in shares}) == len(shares)
    assert all(1 <= share.count <= remaining[share.index] for share in shares)
    assert {share.index for share in plan.decode} == {i for i, count in enumerate(remaining) if count == 1}
    prompts = [i for i, count in enumerate(remaining) if count > 1]
    assert bool(plan.prefill) == bool(prompts)
    if prompts:
        width = max(share.count for share in plan.prefill)
        assert plan.prefill[0].index == prompts[0]
        assert width * len(plan.prefill) <= max(budget, width)
        assert width <= budget
        assert all(2 * share.count >= width for share in plan.prefill)


def test_with_state_pieces_of_prompts_run_alone_and_beginners_decode_with_nobody() -> None:
    items = [Pending(0, 1), Pending(1, 1, begun=False), Pending(2, 40), Pending(3, 1), Pending(4, 4), Pending(5, 9)]
    forwards = plan_apart(items, 16, whole=False)
    assert forwards == ((Share(0, 1), Share(3, 1)), (Share(1, 1),), (Share(2, 15),))
    assert plan_apart(items[4:], 16, whole=False) == ((Share(4, 4),), (Share(5, 9),))
    assert plan_apart(items[1:], 16, whole=True)[1:] == ((Share(1, 1),),)  # then 40 tokens at once
    assert plan_apart(items[2:3], 16, whole=True) == ((Share(2, 40),),)
    assert plan_apart([], 16, whole=False) == ()
