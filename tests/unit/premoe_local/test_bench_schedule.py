"""What a load run sends is fixed before it begins."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_local.bench.outcome import Outcome
from premoe_local.bench.run import Run, closed_loop, open_loop
from premoe_local.bench.schedule import Call, arrivals, plan_calls

from premoe_runtime.offline.calibration import Message


def conversations(task: str, count: int) -> list[tuple[Message, ...]]:
    return [(Message("user", f"{task} {number}"),) for number in range(count)]


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    count=st.integers(0, 200),
    zipf=st.floats(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_calls_are_those_of_their_tasks_and_prompts_take_turns(
    sizes: list[int], count: int, zipf: float, seed: int
) -> None:
    prompts = {f"t{number}": conversations(f"t{number}", size) for number, size in enumerate(sizes)}
    calls = plan_calls(prompts, count, zipf=zipf, seed=seed)
    assert len(calls) == count
    assert calls == plan_calls(prompts, count, zipf=zipf, seed=seed)
    for task, known in prompts.items():
        used = Counter(call.messages for call in calls if call.task == task)
        assert set(used) <= set(known)
        turns = [used[one] for one in known]
        assert max(turns) - min(turns) <= 1


@given(count=st.integers(1, 100), more=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_a_longer_run_of_one_task_begins_as_the_shorter_one(count: int, more: int, seed: int) -> None:
    prompts = {"t": conversations("t", 7)}
    assert plan_calls(prompts, count + more, seed=seed)[:count] == plan_calls(prompts, count, seed=seed)


@pytest.mark.parametrize(("zipf", "shares"), [(0.0, [1 / 3] * 3), (1.0, [6 / 11, 3 / 11, 2 / 11])])
def test_tasks_follow_zipfs_law(zipf: float, shares: list[float]) -> None:
    prompts = {name: conversations(name, 1) for name in "abc"}
    drawn = Counter(call.task for call in plan_calls(prompts, 20_000, zipf=zipf, seed=3))
    assert [drawn[name] / 20_000 for name in "abc"] == pytest.approx(shares, abs=0.02)


@given(
    count=st.integers(1, 100),
    rate=st.floats(0.01, 1e4),
    burstiness=st.floats(0.01, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_arrivals_rise_and_repeat(count: int, rate: float, burstiness: float, seed: int) -> None:
    times = arrivals(count, rate=rate, burstiness=burstiness, seed=seed)
    assert len(times) == count
    assert times[0] >= 0
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert times == arrivals(count, rate=rate, burstiness=burstiness, seed=seed)
    faster = arrivals(count, rate=2 * rate, burstiness=burstiness, seed=seed)
    assert faster == pytest.approx([time / 2 for time in times])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 16.0])
def test_gaps_have_the_rate_and_the_burstiness(burstiness: float) -> None:
    times = arrivals(20_000, rate=50.0, burstiness=burstiness, seed=1)
    gaps = [later - earlier for earlier, later in pairwise([0.0, *times])]
    assert fmean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert (fmean(gaps) / pstdev(gaps)) ** 2 == pytest.approx(burstiness, rel=0.1)


def outcome(call: Call, due: float) -> Outcome:
    return Outcome(call.task, due, due, due)


async def test_the_clock_of_the_open_loop_waits_for_no_answer() -> None:
    """All calls are sent although not one has an answer."""
    release = asyncio.Event()
    sent: list[float] = []

    async def send(call: Call, due: float, clock: object) -> Outcome:
        sent.append(due)
        if len(sent) == 20:
            release.set()
        await release.wait()
        return outcome(call, due)

    times = arrivals(20, rate=2_000.0, seed=5)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    run = Run(send, lambda: loop.time() - begin)
    await open_loop(run, [Call("t", ())] * 20, times)
    assert sent == times
    assert len(run.outcomes) == run.started == 20


@pytest.mark.parametrize(("clients", "calls", "most"), [(1, 5, 1), (4, 20, 4), (8, 3, 3)])
async def test_a_closed_loop_has_one_call_a_client(clients: int, calls: int, most: int) -> None:
    open_now, seen = 0, []

    async def send(call: Call, due: float, clock: object) -> Outcome:
        nonlocal open_now
        open_now += 1
        seen.append(open_now)
        await asyncio.sleep(0)
        open_now -= 1
        return outcome(call, due)

    run = Run(send, lambda: 0.0)
    await closed_loop(run, [Call("t", ())] * calls, clients)
    assert (len(run.outcomes), max(seen)) == (calls, most)
