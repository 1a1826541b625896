"""What a request is charged, however its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from premoe_gateway.domain import Ask, Event, PatternChoice, Sampling, Started, Swap
from premoe_gateway.service import Gateway
from premoe_gateway.usage import SPENDING, Usage
from support.gateway_doubles import MODEL, EchoWorker, OneTask


class Prefilling(EchoWorker):
    """Has begun with a prompt and makes no token."""

    def __init__(self) -> None:
        self.asked_for_more = asyncio.Event()

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        yield Started(choice, 50_000, Swap(0, 0, 0.0))
        self.asked_for_more.set()
        await asyncio.Event().wait()


async def test_who_leaves_before_the_first_token_pays_the_prompt() -> None:
    worker = Prefilling()
    gateway = Gateway([worker], OneTask(), on_unknown=None, timeout_s=600)
    await gateway.refresh()
    usage = Usage()
    SPENDING.set(usage)
    answer = gateway.generate(Ask(MODEL, "long", Sampling()), PatternChoice("full"))
    first = asyncio.ensure_future(anext(answer))
    async with asyncio.timeout(90):
        await worker.asked_for_more.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert usage.total_tokens == usage.prompt_tokens == 50_000
