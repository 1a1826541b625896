"""Fetches that nobody waits for, and what becomes of them when somebody does."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import HostTier
from premoe_runtime.serving.fetches import Fetches, Need

FIRST, SECOND, THIRD = (ExpertId(0, number) for number in range(3))


class Watched:
    """A fetcher that fetches nothing and remembers how urgent it was told to be."""

    def __init__(self) -> None:
        self.urgent: list[Callable[[], bool]] = []

    def fetch(self, places: Mapping[ExpertId, int], delivered: Any, stopped: Any, urgent: Callable[[], bool]) -> None:
        self.urgent.append(urgent)


@pytest.fixture
def fetcher() -> Watched:
    return Watched()


@pytest.fixture
def fetches(fetcher: Watched) -> Fetches:
    host = HostTier(HostArena(4096, 8 * 4096))
    return Fetches(host, cast(Any, fetcher), lambda message: None, spawn=lambda run: run())


def need(fetches: Fetches, *experts: ExpertId, waited_for: bool) -> None:
    context = contextvars.Context() if waited_for else None
    fetches.update(Need(frozenset(experts)), experts, first=True, context=context, now=0.0)


def test_what_a_request_waits_for_is_urgent_from_the_start(fetches: Fetches, fetcher: Watched) -> None:
    need(fetches, FIRST, waited_for=True)
    assert [urgent() for urgent in fetcher.urgent] == [True]


def test_what_nobody_waited_for_becomes_urgent_once_a_request_waits_for_any_of_it(
    fetches: Fetches, fetcher: Watched
) -> None:
    need(fetches, FIRST, SECOND, waited_for=False)
    need(fetches, THIRD, waited_for=False)
    assert [urgent() for urgent in fetcher.urgent] == [False, False]
    need(fetches, SECOND, waited_for=True)
    assert [urgent() for urgent in fetcher.urgent] == [True, False]
