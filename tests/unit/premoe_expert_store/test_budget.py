from __future__ import annotations

import asyncio

from premoe_expert_store.budget import ByteBudget


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_takers_wait_in_turn() -> None:
    budget = ByteBudget(10)
    assert await budget.take(6) == 6
    large = asyncio.create_task(budget.take(8))
    small = asyncio.create_task(budget.take(1))
    await settle()
    assert not large.done()
    assert not small.done(), "a small one must not overtake for ever"
    budget.give(6)
    assert (await large, await small) == (8, 1)
    assert budget.free_bytes == 1


async def test_more_than_everything_takes_everything() -> None:
    budget = ByteBudget(10)
    assert await budget.take(1000) == 10
    budget.give(10)
    assert budget.free_bytes == 10


async def test_who_leaves_the_queue_lets_the_next_one_in() -> None:
    budget = ByteBudget(10)
    await budget.take(5)
    large = asyncio.create_task(budget.take(8))
    small = asyncio.create_task(budget.take(5))
    await settle()
    large.cancel()
    assert await small == 5
    assert budget.free_bytes == 0


async def test_room_that_comes_with_the_cancellation_is_not_lost() -> None:
    budget = ByteBudget(10)
    await budget.take(10)
    waiting = asyncio.create_task(budget.take(4))
    await settle()
    budget.give(10)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert budget.free_bytes == (6 if not waiting.cancelled() else 10)
