"""What kopf's watches leave behind: nothing that the end of the event loop stumbles over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

import pytest
from premoe_operator.kube.watches import closing_generators

WATCHES = 40
"""Each is closed in the right order by chance in about half of the cases."""


@asynccontextmanager
async def block() -> AsyncIterator[None]:
    try:
        yield
    finally:
        await asyncio.sleep(0)


async def watch() -> AsyncIterator[int]:
    async with block():
        while True:
            yield 1


def complaints(around: AbstractAsyncContextManager[None]) -> list[dict[str, Any]]:
    """What the event loop says of watches that were stopped between two events."""
    said: list[dict[str, Any]] = []
    watches = [watch() for _ in range(WATCHES)]

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with around:
            for one in watches:
                await anext(one)

    asyncio.run(main())
    return said


def test_watches_that_were_stopped_between_two_events_are_closed_in_order() -> None:
    assert complaints(nullcontext())  # or this test tests nothing
    assert complaints(closing_generators(of=__name__)) == []


@pytest.mark.parametrize("of", [__name__, "kopf."])
def test_the_generators_of_others_stay_open(of: str) -> None:
    begun: list[AsyncIterator[int]] = []

    async def main() -> bool:
        async with closing_generators(of=of):
            begun.append(watch())
            await anext(begun[0])
        return await anext(begun[0], 0) == 1

    assert asyncio.run(main()) is (of != __name__)
