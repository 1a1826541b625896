"""The sequences of one streamed answer: each begins by itself, then their events come as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Many
from contextlib import aclosing
from dataclasses import dataclass, field

from premoe_gateway.domain import Event, Recognition, Started
from premoe_gateway.openai.logprobs import Shape
from premoe_runtime.formats.errors import Unavailable


@dataclass(slots=True)
class Sequence:
    """One choice on its way. ``prompt``: number of its prompt in the request; ``shape``: of its log probabilities,
    where they are asked for.
    """

    prompt: int
    recognition: Recognition
    events: AsyncGenerator[Event, None]
    shape: Shape | None = None
    started: Started = field(init=False)

    async def begin(self) -> None:
        """Take the first event. Raises what the worker refuses with."""
        first = await anext(self.events, None)
        if not isinstance(first, Started):
            raise Unavailable("the worker began the answer without its first event", reason="ANSWER_CUT")
        self.started = first


async def merged(sequences: Many[Sequence]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of all, each with its sequence's number, as they come. Closing it, or a failure, closes all."""
    if len(sequences) == 1:
        async with aclosing(sequences[0].events) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue(maxsize=len(sequences))
    tasks = [asyncio.create_task(_feed(queue, index, sequence.events)) for index, sequence in enumerate(sequences)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(
    queue: asyncio.Queue[tuple[int, Event] | Exception | None], index: int, events: AsyncGenerator[Event, None]
) -> None:
    try:
        async with aclosing(events):
            async for event in events:
                await queue.put((index, event))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
