"""Which worker of a gateway gets a request, over workers that are scripted in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from premoe_gateway.domain import (
    Ask,
    Delta,
    Event,
    Finished,
    PatternChoice,
    Probed,
    Prompt,
    Sampling,
    Started,
    StoredPattern,
    Swap,
    Tokens,
    Tool,
    Tools,
    Turn,
    WorkerState,
)
from premoe_gateway.routing import members as members_module
from premoe_gateway.service import Gateway
from premoe_servicekit.abilities import ABILITIES

from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.errors import Exhausted, Forbidden, InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.ranking import Ranking

FULL_QUEUE = Exhausted("4 requests are waiting already; try again later", reason="QUEUE_FULL")
GONE = Unavailable("connection refused")
TOOLS = Tools((Tool("add", "", "", strict=False),))
SILENT = Unavailable("no answer in 2 s", reason="DEADLINE_EXCEEDED")


@dataclass(eq=False)
class Scripted:
    """A worker that answers with its address; what it does else is set from outside."""

    address: str
    running: int = 0
    residents: tuple[frozenset[int], ...] = ()
    fault: PremoeError | None = None
    fault_after: int = 0
    """Events before it."""
    state_fault: PremoeError | None = None
    abilities: frozenset[str] = frozenset(ABILITIES)
    asleep: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared by ``freeze``: nothing is answered until it is set again."""
    asked: list[Ask] = field(default_factory=list)
    probed: int = 0
    states: int = 0

    def __post_init__(self) -> None:
        self.asleep.set()

    async def state(self) -> WorkerState:
        self.states += 1
        await self.asleep.wait()
        if self.state_fault is not None:
            raise self.state_fault
        return WorkerState(
            address=self.address,
            model="m",
            weights_id="w",
            running=self.running,
            waiting=0,
            slots=3,
            layer_slots=(),
            residents=self.residents,
            allocation="uniform",
            experts=8,
            context_length=64,
            budget="1/2",
            abilities=self.abilities,
        )

    async def tokenize(self, ask: Ask, timeout_s: float, *, plain: bool) -> Tokens:
        raise NotImplementedError

    async def detokenize(self, model: str, ids: Sequence[int], *, skip_special: bool, timeout_s: float) -> str:
        raise NotImplementedError

    async def probe(self, ask: Ask, timeout_s: float) -> Probed:
        self.probed += 1
        if self.fault is not None:
            raise self.fault
        return Probed("w", (1.0,))

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        self.asked.append(ask)
        ended = Finished("stop", 1, 1, 1.0, 1.0, 1.0)
        events: tuple[Event, ...] = (Started(choice, 1, Swap(0, 0, 0.0)), Delta(self.address), ended)
        for number, event in enumerate(events):
            await self.asleep.wait()
            if self.fault is not None and number == self.fault_after:
                raise self.fault
            yield event


class Known:
    """Retrieval that knows one pattern: experts 0 and 1 first, in both layers."""

    async def retrieve(self, probed: Probed, on_unknown: OnUnknown | None, timeout_s: float) -> PatternChoice:
        return PatternChoice("specialist", "p", "task")

    async def ranking(self, pattern_id: str, timeout_s: float) -> Ranking:
        if pattern_id != "p":
            raise NotFound(f"no pattern {pattern_id}")
        experts = np.array([[0, 1, 2, 3], [1, 0, 3, 2]])
        return Ranking("p", "task", "w", "selection", False, experts, np.ones((2, 4)))

    async def patterns(self, weights_id: str, timeout_s: float) -> tuple[StoredPattern, ...]:
        return (StoredPattern("p", "task", False),)


async def over(*workers: Scripted) -> Gateway:
    gateway = Gateway(workers, Known(), on_unknown=None, timeout_s=30)
    await gateway.refresh()
    return gateway


async def answer(
    gateway: Gateway, prompt: Prompt = "text", pattern_id: str = "p", sampling: Sampling = Sampling()
) -> str:
    """Who answered."""
    choice = PatternChoice("specialist", pattern_id)
    events = [event async for event in gateway.generate(Ask("m", prompt, sampling), choice)]
    assert [type(event) for event in events] == [Started, Delta, Finished]
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_a_full_worker_sends_nobody_away_while_another_has_room() -> None:
    full, free = Scripted("a", fault=FULL_QUEUE), Scripted("b", running=3)
    gateway = await over(full, free)
    assert [await answer(gateway), await answer(gateway)] == ["b", "b"]
    # It was asked once: until it says its state again it is known to be full.
    assert len(full.asked) == 1
    full.fault = None
    await gateway.refresh()
    assert await answer(gateway, pattern_id="other") == "a"


async def test_where_all_are_full_that_is_said_and_nobody_is_asked_anything_else() -> None:
    workers = [Scripted(name, fault=FULL_QUEUE) for name in "abc"]
    gateway = await over(*workers)
    with pytest.raises(Exhausted, match="waiting already"):
        await answer(gateway)
    assert [len(worker.asked) for worker in workers] == [1, 1, 1]
    assert [worker.states for worker in workers] == [1, 1, 1]


@pytest.mark.parametrize("fault", [FULL_QUEUE, GONE])
async def test_a_probe_goes_to_another_worker_too(fault: PremoeError) -> None:
    first, second = Scripted("a", fault=fault), Scripted("b", running=1)
    gateway = await over(first, second)
    recognition = await gateway.recognise(Ask("m", "text", Sampling()))
    assert recognition.choice.pattern_id == "p"
    assert (first.probed, second.probed) == (1, 1)


@pytest.mark.parametrize("fault", [FULL_QUEUE, GONE])
@pytest.mark.parametrize(("after", "tries"), [(0, 2), (1, 2), (2, 1)], ids=["nothing", "its start", "a token"])
async def test_a_request_is_tried_again_only_before_its_first_token(fault: PremoeError, after: int, tries: int) -> None:
    first, second = Scripted("a", fault=fault, fault_after=after), Scripted("b", running=1)
    gateway = await over(first, second)
    if tries == 2:
        assert await answer(gateway) == "b"
    else:
        with pytest.raises(type(fault)):
            await answer(gateway)
    assert len(first.asked) + len(second.asked) == tries


async def test_a_pattern_goes_where_fewest_bytes_have_to_move_and_stays_there() -> None:
    cold = Scripted("a", residents=(frozenset({4, 5, -1}), frozenset({6, 7, -1})))
    warm = Scripted("b", running=2, residents=(frozenset({0, 1, 5}), frozenset({0, 7, -1})))
    gateway = await over(cold, warm)
    assert await answer(gateway) == "b"
    assert await answer(gateway, pattern_id="unknown") == "a"
    warm.residents, cold.residents = cold.residents, warm.residents
    await gateway.refresh()
    assert await answer(gateway) == "b"


async def test_a_conversation_keeps_its_worker() -> None:
    first, second = Scripted("a"), Scripted("b", running=1)
    gateway = await over(first, second)
    opening = (Turn("system", "Be brief."), Turn("user", "hello"))
    assert await answer(gateway, opening, "x") == "a"
    first.running, second.running = 3, 0
    await gateway.refresh()
    other = (Turn("user", "hello"),)
    assert await answer(gateway, other, "y") == "b"
    going_on = (*opening, Turn("assistant", "a"), Turn("user", "and now?"))
    assert await answer(gateway, going_on, "y") == "a"
    # Its worker goes: another one takes the conversation over, and keeps it.
    first.fault = GONE
    on = (*going_on, Turn("assistant", "a"), Turn("user", "then?"))
    assert await answer(gateway, on, "x") == "b"
    first.fault, first.running, second.running = None, 0, 3
    await gateway.refresh()
    assert await answer(gateway, (*on, Turn("assistant", "b"), Turn("user", "well?")), "x") == "b"


async def test_a_worker_that_stops_answering_in_mid_poll_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "PATIENCE_S", 0.05)
    frozen, other = Scripted("a"), Scripted("b", running=3)
    gateway = await over(frozen, other)
    assert await answer(gateway) == "a"
    frozen.asleep.clear()
    waiting = asyncio.create_task(answer(gateway))
    await asyncio.sleep(0)
    # The poll of the others does not wait for it, and what is asked from now on goes elsewhere.
    await gateway.refresh()
    assert await answer(gateway) == "b"
    assert not waiting.done()
    assert other.states == 2
    await gateway.refresh()
    assert (frozen.states, other.states) == (2, 3)
    # Its time is up: who waits for a first token there is sent elsewhere too.
    frozen.state_fault = SILENT
    frozen.asleep.set()
    frozen.asleep = asyncio.Event()
    assert await waiting == "b"
    assert [state.address for state in gateway.healthy()] == ["b"]


async def test_the_only_worker_is_waited_for_however_late_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "PATIENCE_S", 0.01)
    slow = Scripted("a")
    slow.asleep.clear()
    gateway = Gateway([slow], Known(), on_unknown=None, timeout_s=30)
    asking = asyncio.create_task(answer(gateway))
    await asyncio.sleep(0.1)
    assert not asking.done()
    slow.asleep.set()
    assert await asking == "a"


async def test_the_only_worker_answers_though_it_is_late_with_its_state_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy machine makes it late; nobody else could answer."""
    busy = Scripted("a")
    gateway = await over(busy)
    busy.state_fault = SILENT
    for _ in range(2):
        await gateway.refresh()
        assert await answer(gateway) == "a"
    assert gateway.healthy() == []
    gateway.add(Scripted("b"))
    await gateway.refresh()
    assert await answer(gateway) == "b"
    gateway.remove("b")
    monkeypatch.setattr(members_module, "SILENCE_S", 0.0)
    await gateway.refresh()
    with pytest.raises(Unavailable, match="no worker"):
        await answer(gateway)


async def test_requests_go_to_workers_that_know_what_they_ask_for() -> None:
    """Of an older version: it passes over fields that it does not know, and says nothing of abilities."""
    older, newer = Scripted("a", abilities=frozenset()), Scripted("b", running=9)
    gateway = await over(older, newer)
    assert await answer(gateway) == "a"
    assert await answer(gateway, sampling=Sampling(min_p=0.5)) == "b"
    await gateway.recognise(Ask("m", "text", Sampling(), tools=TOOLS))
    assert (older.probed, newer.probed) == (0, 1)
    gateway.remove("b")
    with pytest.raises(InvalidInput, match="no worker of 'm' knows end_tokens, min_p: they are of an older version"):
        await answer(gateway, sampling=Sampling(min_p=0.5, ignore_eos=True))
    assert await answer(gateway) == "a"


async def test_a_worker_that_is_stopping_answers_until_another_one_is_known() -> None:
    """It says that it stops as long before as callers take to find the next one."""
    stopping = Scripted("a")
    gateway = await over(stopping)
    stopping.state_fault = Unavailable("draining", reason="NOT_SERVING")
    await gateway.refresh()
    assert gateway.healthy() == []
    assert [await answer(gateway), await answer(gateway)] == ["a", "a"]
    gateway.add(Scripted("b"))
    await gateway.refresh()
    assert await answer(gateway) == "b"
    stopping.state_fault = GONE
    gateway.remove("b")
    await gateway.refresh()
    with pytest.raises(Unavailable):
        await answer(gateway)


async def test_a_worker_that_has_not_served_yet_is_not_asked() -> None:
    starting = Scripted("a", state_fault=Unavailable("loading", reason="NOT_SERVING"))
    gateway = await over(starting)
    with pytest.raises(Unavailable, match="no worker answers"):
        await answer(gateway)
    assert starting.asked == []


async def test_an_answer_that_has_begun_stays_with_a_worker_that_drains() -> None:
    draining, other = Scripted("a"), Scripted("b", running=3)
    gateway = await over(draining, other)
    choice = PatternChoice("specialist", "p")
    events = gateway.generate(Ask("m", "text", Sampling()), choice)
    assert isinstance(await anext(events), Started)
    draining.state_fault = Unavailable("draining", reason="NOT_SERVING")
    await gateway.refresh()
    assert await answer(gateway) == "b"
    assert [type(event) async for event in events] == [Delta, Finished]


async def test_a_worker_that_refuses_the_gateway_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    worker = Scripted("w1", state_fault=Forbidden("premoe://a.b/gateway may not call GetResidency"))
    gateway = Gateway([worker], None, on_unknown=None, timeout_s=30)
    for _ in range(3):
        await gateway.refresh()
    expected = "worker w1 refuses this gateway: premoe://a.b/gateway may not call GetResidency"
    assert [record.getMessage() for record in caplog.records] == [expected]
