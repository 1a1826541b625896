from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from premoe_expert_store.single_flight import SingleFlight

from premoe_runtime.formats.errors import CorruptData, PremoeError, Unavailable

Flights = SingleFlight[str, str]


class Loads:
    """Loads that wait for ``go``; ``calls`` are the keys of each."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.go = asyncio.Event()
        self.cancelled = 0
        self.broken: set[str] = set()

    async def __call__(self, keys: Sequence[str]) -> Mapping[str, str | PremoeError]:
        self.calls.append(list(keys))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {key: CorruptData(f"{key} is bad") if key in self.broken else key.upper() for key in keys}


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_callers_share_the_load_of_a_key_and_load_the_rest() -> None:
    flights, loads = Flights(), Loads()
    first = asyncio.create_task(flights.get(["a", "b"], loads))
    await settle()
    second = asyncio.create_task(flights.get(["b", "c", "c"], loads))
    await settle()
    assert loads.calls == [["a", "b"], ["c"]]
    loads.go.set()
    assert await first == {"a": "A", "b": "B"}
    assert await second == {"b": "B", "c": "C"}
    assert flights.under_way == 0
    assert await flights.get(["a"], loads) == {"a": "A"}
    assert len(loads.calls) == 3


async def test_a_load_goes_on_while_anybody_waits() -> None:
    flights, loads = Flights(), Loads()
    first = asyncio.create_task(flights.get(["a"], loads))
    await settle()
    second = asyncio.create_task(flights.get(["a"], loads))
    await settle()
    first.cancel()
    await settle()
    assert loads.cancelled == 0
    loads.go.set()
    assert await second == {"a": "A"}
    assert first.cancelled()


async def test_a_load_ends_when_the_last_one_leaves_and_may_start_again() -> None:
    flights, loads = Flights(), Loads()
    both = [asyncio.create_task(flights.get(["a"], loads)) for _ in range(2)]
    await settle()
    for one in both:
        one.cancel()
    await settle()
    assert (loads.cancelled, flights.under_way) == (1, 0)
    loads.go.set()
    assert await flights.get(["a"], loads) == {"a": "A"}


async def test_an_error_reaches_only_those_who_asked_for_the_broken_key() -> None:
    flights, loads = Flights(), Loads()
    loads.broken = {"a"}
    first = asyncio.create_task(flights.get(["b", "a"], loads))
    await settle()
    second = asyncio.create_task(flights.get(["b"], loads))
    await settle()
    loads.go.set()
    with pytest.raises(CorruptData, match="a is bad"):
        await first
    assert await second == {"b": "B"}


async def test_a_load_that_fails_as_a_whole_fails_all_and_leaves_nothing_behind() -> None:
    flights = Flights()

    async def fail(keys: Sequence[str]) -> Mapping[str, str | PremoeError]:
        await settle()
        raise Unavailable("down")

    results = await asyncio.gather(*(flights.get(["a"], fail) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 3
    assert flights.under_way == 0
