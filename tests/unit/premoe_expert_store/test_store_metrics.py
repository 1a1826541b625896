"""What an expert store counts beside bytes."""

from __future__ import annotations

import pytest
from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.metrics import StoreMetrics
from premoe_servicekit.metrics import Metrics
from support.memory_cache import MemoryCache
from support.metrics import read

from premoe_runtime.formats.errors import CorruptData, Unavailable


class Failing(MemoryCache):
    def holds(self, digests: object, num_bytes: int) -> list[bool]:
        raise Unavailable("the cache is away")


def test_failed_calls_are_counted_by_kind_and_reason() -> None:
    metrics = Metrics()
    counted = StoreMetrics(metrics)
    for error in (CorruptData("x", reason="DIGEST_MISMATCH"), Unavailable("y"), CorruptData("z"), ValueError("?")):
        with pytest.raises(type(error)), counted.call():
            raise error
    with counted.call():
        pass
    found = read(metrics)
    assert found.value("premoe:store_errors_total", kind="CorruptData") == 2
    assert found.value("premoe:store_errors_total", kind="CorruptData", reason="DIGEST_MISMATCH") == 1
    assert found.value("premoe:store_errors_total", kind="Unavailable") == 1
    assert found.value("premoe:store_errors_total", reason="INTERNAL") == 1
    assert found.value("premoe:store_errors_total") == 4


def test_a_cache_that_is_left_alone_shows() -> None:
    now = 0.0
    cache = GuardedCache(Failing(1), cool_down_s=5.0, clock=lambda: now)
    metrics = Metrics()
    StoreMetrics(metrics).show(lambda: cache.available)
    assert read(metrics).value("premoe:store_cache_skipped") == 0
    cache.holds(["a"], 1)
    assert read(metrics).value("premoe:store_cache_skipped") == 1
    now = 6.0
    assert read(metrics).value("premoe:store_cache_skipped") == 0
