"""One run from beginning to end: look at the endpoint, warm up, load it, sum up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from premoe_local.bench.client import Endpoint, clock_from_now, connected
from premoe_local.bench.outcome import Outcome
from premoe_local.bench.run import Run, Send, closed_loop, open_loop, until_interrupted
from premoe_local.bench.schedule import Call
from premoe_runtime.formats.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for."""

    endpoint: Endpoint
    model: str | None
    """None: the only one served."""
    body: Mapping[str, Any]
    """Fields of every request, model and messages aside."""
    warmups: Sequence[Call]
    calls: Sequence[Call]
    pace: int | Sequence[float]
    """Clients of a closed loop, or when each call of an open loop is due, in seconds."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it; ``started`` counts calls that were sent."""

    model: str
    outcomes: Sequence[Outcome]
    started: int
    seconds: float
    """From the beginning to the last end, or to Ctrl-C."""
    whole: bool
    """Whether it ran to its end, not to Ctrl-C."""


def measure(load: Load, *, warm: Callable[[], None], ended: Callable[[], None]) -> Measured:
    """Run it. ``warm`` is told when warm-up is over, ``ended`` of every request that has.

    Raises Unavailable, InvalidInput or NotFound where no OpenAI endpoint answers or a warm-up fails; afterwards every
    failure is an outcome. Must be called on the main thread.
    """
    return asyncio.run(_measure(load, warm, ended))


async def _measure(load: Load, warm: Callable[[], None], ended: Callable[[], None]) -> Measured:
    async with connected(load.endpoint) as client:
        model = await client.model_name(load.model)
        send = partial(client.send, {"model": model, **load.body})
        await _warm_up(load, send)
        warm()
        run = Run(send, clock_from_now(), ended)
        if isinstance(load.pace, int):
            work = closed_loop(run, load.calls, load.pace)
        else:
            work = open_loop(run, load.calls, load.pace)
        whole = await until_interrupted(work)
    return Measured(model, run.outcomes, run.started, run.clock(), whole)


async def _warm_up(load: Load, send: Send) -> None:
    clock = clock_from_now()
    for call in load.warmups:
        outcome = await send(call, clock(), clock)
        if not outcome.ok:
            raise Unavailable(f"{load.endpoint.base_url}: the warm-up failed with {outcome.code}: {outcome.detail}")
