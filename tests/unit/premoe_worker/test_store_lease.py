"""Leases are prolonged while blobs are read and given back at the end, and nobody waits for that."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any, cast

import pytest
from premoe_worker.adapters.lease import Lease

JOIN_S = 20.0


class Call:
    """An RPC that is never answered, unless ``answered``."""

    def __init__(self) -> None:
        self.leases: list[str] = []
        self.answered = False

    def future(self, request: Any, timeout: float) -> Future[Any]:
        self.leases.append(request.lease_id)
        made: Future[Any] = Future()
        if self.answered:
            made.set_result(None)
        return made


class Stub:
    def __init__(self) -> None:
        self.Renew, self.Release = Call(), Call()


@pytest.fixture
def stub() -> Stub:
    return Stub()


def lease(stub: Stub, lease_id: str, seconds: float) -> Lease:
    """One of ``seconds``, from a store whose clock says 1000."""
    return Lease(cast(Any, stub), lease_id, 1000 + seconds, 1000)


def tend_until(one: Lease, stub: Stub, count: int) -> None:
    until = time.monotonic() + JOIN_S
    while len(stub.Renew.leases) < count:
        assert time.monotonic() < until
        one.tend()
        time.sleep(0.005)


def test_it_is_renewed_as_long_as_it_is_tended_and_released_once(stub: Stub) -> None:
    stub.Renew.answered = True
    with lease(stub, "a", 0.04) as one:
        tend_until(one, stub, 3)
    assert set(stub.Renew.leases) == {"a"}
    assert stub.Release.leases == ["a"]


def test_one_that_is_long_enough_costs_nothing(stub: Stub) -> None:
    with lease(stub, "a", 3600) as one:
        for _ in range(100):
            one.tend()
    assert stub.Renew.leases == []


def test_a_store_that_does_not_answer_is_asked_once(stub: Stub) -> None:
    with lease(stub, "a", 0.02) as one:
        tend_until(one, stub, 1)
        time.sleep(0.05)
        one.tend()
    assert stub.Renew.leases == ["a"]


@pytest.mark.parametrize(("lease_id", "seconds"), [("", 100.0), ("a", -5.0), ("a", 0.0)])
def test_stores_without_leases_and_with_other_clocks(stub: Stub, lease_id: str, seconds: float) -> None:
    with lease(stub, lease_id, seconds) as one:
        one.tend()
    assert stub.Renew.leases == []
    assert stub.Release.leases == [lease_id] * bool(lease_id)
