"""The Lease: one holder, a fence before every write, and no trust in other clocks."""

from __future__ import annotations

import asyncio

import pytest
from premoe_operator.kube.cluster import ApiFailure, FenceClosed
from premoe_operator.kube.kinds import LEASE
from premoe_operator.kube.lease import Lease, LeaseLost, LeaseTimes
from premoe_operator.kube.objects import Json, ObjectKey
from support.cluster_twin import ClusterTwin

KEY = ObjectKey(LEASE, "premoe", "premoe-operator")
TIMES = LeaseTimes(renew_s=0.01, fence_s=10.0, duration_s=15.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def twin() -> ClusterTwin:
    cluster = ClusterTwin()
    metadata = {"name": KEY.name, "namespace": KEY.namespace}
    cluster.put({"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata})
    return cluster


def lease(identity: str, clock: Clock) -> Lease:
    return Lease(KEY.namespace, KEY.name, identity, TIMES, clock=clock)


async def within(seconds: float, awaitable: object) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await awaitable  # type: ignore[misc]
    except TimeoutError:
        return False
    return True


async def test_the_first_takes_it_and_the_second_waits() -> None:
    cluster, clock = twin(), Clock()
    first, second = lease("first", clock), lease("second", clock)
    await first.acquire(cluster)
    first.check()
    assert not await within(0.1, second.acquire(cluster))
    with pytest.raises(FenceClosed):
        second.check()
    assert cluster.objects[KEY]["spec"]["holderIdentity"] == "first"


async def test_it_is_taken_only_after_the_whole_duration_on_the_own_clock() -> None:
    cluster, clock = twin(), Clock()
    first, second = lease("first", clock), lease("second", clock)
    await first.acquire(cluster)
    assert not await within(0.05, second.acquire(cluster))
    clock.now += TIMES.duration_s - 0.1
    assert not await within(0.05, second.acquire(cluster))
    clock.now += 0.2
    assert await within(30, second.acquire(cluster))
    assert cluster.objects[KEY]["spec"]["leaseTransitions"] == 2
    with pytest.raises(LeaseLost, match="second has the Lease"):
        await first.keep(cluster)


async def test_the_fence_closes_before_another_may_write() -> None:
    cluster, clock = twin(), Clock()
    first = lease("first", clock)
    await first.acquire(cluster)
    clock.now += TIMES.fence_s - 0.1
    first.check()
    clock.now += 0.2
    with pytest.raises(FenceClosed):
        first.check()


async def test_a_holder_that_cannot_renew_ends() -> None:
    cluster, clock = twin(), Clock()
    first = lease("first", clock)
    await first.acquire(cluster)

    async def fail(obj: object) -> None:
        clock.now += 4.0
        raise ApiFailure(0, "Unreachable", "nobody there")

    cluster.replace = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(LeaseLost, match="could not be renewed"):
        await first.keep(cluster)


async def test_a_released_lease_is_taken_at_once() -> None:
    cluster, clock = twin(), Clock()
    first, second = lease("first", clock), lease("second", clock)
    await first.acquire(cluster)
    await first.release(cluster)
    with pytest.raises(FenceClosed):
        first.check()
    assert await within(30, second.acquire(cluster))


async def test_a_claim_whose_answer_never_came_is_released_too() -> None:
    """A signal that comes while the first claim is on its way."""
    cluster, clock = twin(), Clock()
    first, second = lease("first", clock), lease("second", clock)
    replace, written = cluster.replace, asyncio.Event()

    async def answers_late(obj: Json) -> Json:
        made = await replace(obj)
        written.set()
        await asyncio.sleep(60)
        return made

    cluster.replace = answers_late  # type: ignore[method-assign]
    claiming = asyncio.create_task(first.acquire(cluster))
    await written.wait()
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    assert cluster.objects[KEY]["spec"]["holderIdentity"] == "first"
    cluster.replace = replace  # type: ignore[method-assign]
    await first.release(cluster)
    assert await within(30, second.acquire(cluster))


async def test_the_lease_of_another_is_never_released() -> None:
    cluster, clock = twin(), Clock()
    first, second = lease("first", clock), lease("second", clock)
    await first.acquire(cluster)
    first._unanswered = True
    clock.now += TIMES.duration_s
    await second.attempt(cluster)
    clock.now += TIMES.duration_s
    assert await second.attempt(cluster) == "second"
    await first.release(cluster)
    assert cluster.objects[KEY]["spec"]["holderIdentity"] == "second"


async def test_a_release_that_nobody_answers_holds_no_process_up() -> None:
    cluster, clock = twin(), Clock()
    first = Lease(KEY.namespace, KEY.name, "first", LeaseTimes(0.01, 0.3, 15.0), clock=clock)
    await first.acquire(cluster)

    async def silent(*_: object) -> None:
        await asyncio.sleep(60)

    cluster.get = silent  # type: ignore[method-assign, assignment]
    assert await within(20, first.release(cluster))


async def test_of_two_at_once_only_one_gets_it() -> None:
    cluster, clock = twin(), Clock()
    replicas = [lease(name, clock) for name in ("a", "b", "c")]
    tasks = [asyncio.create_task(replica.acquire(cluster)) for replica in replicas]
    await asyncio.sleep(0.2)
    assert sum(task.done() for task in tasks) == 1
    assert sum(replica.is_held for replica in replicas) == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
