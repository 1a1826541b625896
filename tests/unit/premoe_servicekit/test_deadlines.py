from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from premoe_servicekit.deadlines import bounded, carried, deadline, no_deadline, remaining


def test_without_a_deadline_nothing_is_bounded() -> None:
    assert remaining() is None
    assert bounded(1e9) == 1e9


def test_the_shorter_of_two_deadlines_holds() -> None:
    with deadline(1000):
        with deadline(5000):
            assert (remaining() or 0) <= 1000
        with deadline(10):
            assert bounded(500) <= 10
        assert 10 < bounded(500) <= 500
    assert remaining() is None


def test_none_adds_no_bound() -> None:
    with deadline(10), deadline(None):
        assert bounded(500) <= 10


def test_work_for_several_callers_is_bounded_by_none_of_them() -> None:
    with deadline(0):
        with no_deadline():
            assert remaining() is None
        assert remaining() == 0


def test_a_passed_deadline_leaves_nothing() -> None:
    with deadline(0):
        assert remaining() == 0


async def test_tasks_inherit_it_and_threads_when_carried() -> None:
    with deadline(1000), ThreadPoolExecutor(2) as threads:
        assert await asyncio.create_task(asyncio.sleep(0, remaining())) is not None
        assert threads.submit(remaining).result() is None
        carried_remaining = carried(remaining)
        both = [threads.submit(carried_remaining) for _ in range(2)]
        assert all((one.result() or 0) > 0 for one in both)


def test_carried_keeps_arguments_and_errors() -> None:
    assert carried(pow)(2, 5, mod=7) == 4
    with pytest.raises(ZeroDivisionError):
        carried(divmod)(1, 0)
