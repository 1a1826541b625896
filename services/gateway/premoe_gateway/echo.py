"""Answers that begin with their prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Literal

from premoe_gateway.domain import Delta, Event, Finished, Started

Echo = Literal["", "prompt", "only"]


async def echoed(events: AsyncGenerator[Event, None], prompt: str, echo: Echo) -> AsyncGenerator[Event, None]:
    """The events of an answer, ``prompt`` and its log probabilities as their first text, or as all of it."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                own = Delta("") if echo == "only" else Delta(event.text, event.logprobs)
                yield replace(own, logprobs=event.prompt_logprobs + own.logprobs)
            elif isinstance(event, Finished) and echo == "only":
                yield replace(event, reason="length", completion_tokens=0)
            else:
                yield event
            if isinstance(event, Started):
                yield Delta(prompt)
