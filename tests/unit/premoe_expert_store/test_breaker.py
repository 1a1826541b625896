from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from premoe_dataplane.blob_cache import Wanted
from premoe_expert_store.breaker import GuardedCache

from premoe_runtime.formats.errors import Exhausted, PremoeError, Unavailable
from premoe_runtime.formats.pieces import Hole


class Failing:
    """A cache that raises what it is told to and counts calls."""

    def __init__(self) -> None:
        self.error: PremoeError | None = Unavailable("no route")
        self.calls = 0

    def _answer(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error

    def read(self, wanted: Sequence[Wanted]) -> list[tuple[Hole, ...]]:
        self._answer()
        return [() for _ in wanted]

    def write(self, digest: str, blob: memoryview, holes: Sequence[Hole]) -> None:
        self._answer()

    def holds(self, digests: Sequence[str], num_bytes: int) -> list[bool]:
        self._answer()
        return [True for _ in digests]

    def forget(self, digest: str, num_bytes: int) -> None:
        self._answer()

    def close(self) -> None: ...


@pytest.fixture
def wanted() -> list[Wanted]:
    return [Wanted("d", memoryview(bytearray(8)))]


def test_a_failing_cache_is_holes_and_is_then_left_alone(
    wanted: list[Wanted], caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    inner = Failing()
    cache = GuardedCache(inner, cool_down_s=5, clock=lambda: now)
    with caplog.at_level(logging.INFO):
        assert cache.read(wanted) == [(Hole(0, 8),)]
        assert cache.holds(["d"], 8) == [False]
        cache.write("d", memoryview(b"x" * 8), [Hole(0, 8)])
        cache.forget("d", 8)
        assert (inner.calls, cache.available) == (1, False)
        now = 5.0
        assert cache.holds(["d"], 8) == [False]
        assert inner.calls == 2
        inner.error, now = None, 10.0
        assert cache.read(wanted) == [()]
        assert cache.holds(["d"], 8) == [True]
    assert [record.getMessage() for record in caplog.records] == [
        "the cache is skipped: no route",
        "the cache answers again",
    ]


def test_a_full_cache_still_reads_and_says_so_once(wanted: list[Wanted], caplog: pytest.LogCaptureFixture) -> None:
    inner = Failing()
    cache = GuardedCache(inner)
    inner.error = Exhausted("Redis is full")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cache.write("d", memoryview(b"x" * 8), [Hole(0, 8)])
    inner.error = None
    assert cache.read(wanted) == [()]
    assert len(caplog.records) == 1


def test_a_cache_that_others_fill_is_only_read(wanted: list[Wanted]) -> None:
    inner = Failing()
    inner.error = None
    cache = GuardedCache(inner, writes=False)
    before = inner.calls
    cache.write("d", memoryview(b"x" * 8), [Hole(0, 8)])
    assert inner.calls == before
    assert cache.read(wanted) == [()]
