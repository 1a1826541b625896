"""No kind of work waits behind another."""

from __future__ import annotations

import asyncio
import threading

import pytest
from premoe_servicekit.deadlines import deadline, remaining
from premoe_worker.lane import Lane

from premoe_runtime.formats.errors import Exhausted


async def test_a_lane_refuses_what_may_not_wait() -> None:
    lane, go = Lane("probed", threads=1, waiting=1), threading.Event()
    running = asyncio.create_task(lane.run(go.wait))
    waiting = asyncio.create_task(lane.run(str, 7))
    await asyncio.sleep(0)
    with pytest.raises(Exhausted, match="1 prompts are waiting to be probed already") as caught:
        await lane.run(str, 8)
    assert caught.value.reason == "QUEUE_FULL"
    go.set()
    assert (await running, await waiting) == (True, "7")
    assert await lane.run(str, 9) == "9"
    lane.close()


async def test_a_caller_that_leaves_the_queue_makes_room() -> None:
    lane, go = Lane("probed", threads=1, waiting=1), threading.Event()
    running = asyncio.create_task(lane.run(go.wait))
    done: list[int] = []
    leaving = asyncio.create_task(lane.run(done.append, 1))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    staying = asyncio.create_task(lane.run(done.append, 2))
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(running, staying)
    assert done == [2]
    lane.close()


async def test_a_caller_that_leaves_its_work_does_not_free_the_thread() -> None:
    lane, go = Lane("probed", threads=1, waiting=0), threading.Event()
    leaving = asyncio.create_task(lane.run(go.wait))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    with pytest.raises(Exhausted):
        await lane.run(str, 1)
    go.set()
    lane.close()


async def test_work_keeps_its_context_and_its_errors() -> None:
    lane = Lane("encoded", threads=1, waiting=0)
    with deadline(1000):
        assert await lane.run(remaining) is not None
    with pytest.raises(ZeroDivisionError):
        await lane.run(lambda: 1 // 0)
    lane.close()
