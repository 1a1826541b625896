"""The keyed queue: nothing is lost, nothing is worked on twice at a time, failures come again and slower."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from premoe_operator.run.queue import FIRST_RETRY_S, WorkQueue

KEYS = ["a", "b", "c"]


class QueueMachine(RuleBasedStateMachine):
    """Any order of calls, against a set of keys that still have to be worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue: WorkQueue[str] = WorkQueue(retry_max_s=10.0, clock=lambda: self.now)
        self.loop = asyncio.new_event_loop()
        self.working: set[str] = set()
        self.owed: set[str] = set()

    def teardown(self) -> None:
        self.loop.close()

    @rule(key=st.sampled_from(KEYS))
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)

    @rule(key=st.sampled_from(KEYS), delay_s=st.floats(0, 20))
    def add_later(self, key: str, delay_s: float) -> None:
        self.queue.add_later(key, delay_s)
        self.owed.add(key)

    @rule(seconds=st.floats(0.1, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def get(self) -> None:
        key = self._get()
        if key is not None:
            assert key not in self.working
            assert key in self.owed
            self.working.add(key)
            self.owed.discard(key)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), failed=st.booleans())
    def end(self, data: st.DataObject, failed: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.working.discard(key)
        if failed:
            assert FIRST_RETRY_S <= self.queue.failed(key) <= 10.0
            self.owed.add(key)
        else:
            self.queue.done(key)

    @invariant()
    def is_whole(self) -> None:
        self.queue.check_integrity()

    @rule()
    def everything_owed_comes(self) -> None:
        self.now += 100.0
        for key in sorted(self.working):
            self.queue.done(key)
        self.working.clear()
        came = set()
        while (next_key := self._get()) is not None:
            came.add(next_key)
            self.queue.done(next_key)
        assert came == self.owed
        self.owed.clear()

    def _get(self) -> str | None:
        async def get() -> str | None:
            try:
                async with asyncio.timeout(0):
                    return await self.queue.get()
            except TimeoutError:
                return None

        return self.loop.run_until_complete(get())


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


async def test_a_key_added_while_worked_on_comes_again_once() -> None:
    queue: WorkQueue[str] = WorkQueue(retry_max_s=1.0)
    queue.add("a")
    assert await queue.get() == "a"
    for _ in range(5):
        queue.add("a")
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


@given(st.integers(1, 60))
async def test_waits_double_up_to_the_longest(failures: int) -> None:
    queue: WorkQueue[str] = WorkQueue(retry_max_s=7.0, clock=lambda: 0.0)
    waits = []
    for _ in range(failures):
        queue.add("a")
        await queue.get()
        waits.append(queue.failed("a"))
    assert waits == [min(0.2 * 2**number, 7.0) for number in range(failures)]


async def test_success_forgets_failures() -> None:
    queue: WorkQueue[str] = WorkQueue(retry_max_s=7.0)
    queue.add("a")
    await queue.get()
    queue.failed("a")
    queue.add("a")
    await queue.get()
    queue.done("a")
    queue.add("a")
    await queue.get()
    assert queue.failed("a") == FIRST_RETRY_S
