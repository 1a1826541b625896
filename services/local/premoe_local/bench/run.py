"""Sends calls, as a closed loop of clients or as an open loop by the clock, and collects what became of them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from premoe_local.bench.outcome import Outcome
from premoe_local.bench.schedule import Call

Send = Callable[[Call, float, Callable[[], float]], Awaitable[Outcome]]
"""Given the call, when it was due, and the run's clock."""


@dataclass(slots=True)
class Run:
    """A run under way. ``started`` counts calls that were sent."""

    send: Send
    clock: Callable[[], float]
    on_end: Callable[[], None] = lambda: None
    outcomes: list[Outcome] = field(default_factory=list)
    started: int = 0

    async def one(self, call: Call, due: float) -> None:
        self.started += 1
        self.outcomes.append(await self.send(call, due, self.clock))
        self.on_end()


async def closed_loop(run: Run, calls: Iterable[Call], clients: int) -> None:
    """Each client sends its next call when its last answer has ended."""
    left = iter(calls)

    async def client() -> None:
        for call in left:
            await run.one(call, run.clock())

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())


async def open_loop(run: Run, calls: Iterable[Call], times: Sequence[float]) -> None:
    """Every call is sent when its time has come, however many answers are still open."""
    async with asyncio.TaskGroup() as group:
        for call, due in zip(calls, times, strict=True):
            await asyncio.sleep(due - run.clock())
            group.create_task(run.one(call, due))


async def until_interrupted(work: Coroutine[Any, Any, None]) -> bool:
    """Run to the end, or until Ctrl-C or SIGTERM cancels what is open; returns whether it got to the end."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await asyncio.wait({task})
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if task.cancelled():
        return False
    task.result()
    return True
