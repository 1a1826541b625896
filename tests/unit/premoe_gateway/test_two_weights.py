"""One name served with two weights, while its workers move to another model: no request gets a foreign pattern."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from premoe_gateway.domain import (
    Ask,
    Delta,
    Event,
    PatternChoice,
    Probed,
    Sampling,
    Started,
    StoredPattern,
    WorkerState,
)
from premoe_gateway.service import Gateway
from support.gateway_doubles import MODEL, EchoWorker, OneTask

from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.errors import NotFound, Unavailable


class Weights(EchoWorker):
    """A worker of some weights, which knows their pattern only, and answers with their name."""

    def __init__(self, address: str, weights_id: str) -> None:
        self.address = address
        self.weights_id = weights_id
        self.is_gone = False
        self.load = 0

    async def state(self) -> WorkerState:
        self.check()
        state = await super().state()
        return replace(state, address=self.address, weights_id=self.weights_id, running=self.load)

    async def probe(self, ask: Ask, timeout_s: float) -> Probed:
        self.check()
        return Probed(self.weights_id, (1.0,))

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        self.check()
        if choice.decision != "full" and choice.pattern_id != f"p-{self.weights_id}":
            raise NotFound(f"no pattern {choice.pattern_id}", reason="PATTERN_NOT_FOUND")
        async for event in super().generate(ask, choice, timeout_s):
            yield Delta(self.weights_id) if isinstance(event, Delta) else event

    def check(self) -> None:
        if self.is_gone:
            raise Unavailable("connection refused")


class TaskOfEach(OneTask):
    """Every weights have a pattern of the one task."""

    async def retrieve(self, probed: Probed, on_unknown: OnUnknown | None, timeout_s: float) -> PatternChoice:
        return PatternChoice("specialist", f"p-{probed.weights_id}", "task")

    async def patterns(self, weights_id: str, timeout_s: float) -> tuple[StoredPattern, ...]:
        return (StoredPattern(f"p-{weights_id}", "task", False),)


async def over(*workers: Weights) -> Gateway:
    gateway = Gateway(workers, TaskOfEach(), on_unknown=None, timeout_s=30)
    await gateway.refresh()
    return gateway


async def answer(gateway: Gateway, ask: Ask, choice: PatternChoice) -> tuple[str, str]:
    """Weights that answered, and the pattern that the answer says."""
    events = [event async for event in gateway.generate(ask, choice)]
    (started,) = (event for event in events if isinstance(event, Started))
    (weights,) = {event.text for event in events if isinstance(event, Delta)}
    return weights, started.choice.pattern_id


@pytest.mark.parametrize("pattern", ["", "task"])
@pytest.mark.parametrize("busier", ["old", "new"])
async def test_a_pattern_runs_on_the_weights_that_it_is_of(pattern: str, busier: str) -> None:
    """Also where the other worker has less to do by the time the answer starts."""
    old, new = Weights("a", "old"), Weights("b", "new")
    gateway = await over(old, new)
    ask = Ask(MODEL, "text", Sampling(), pattern=pattern)
    choice = (await gateway.recognise(ask)).choice
    {"old": old, "new": new}[busier].load = 40
    await gateway.refresh()
    weights, pattern_id = await answer(gateway, ask, choice)
    assert pattern_id == choice.pattern_id == f"p-{weights}"


@pytest.mark.parametrize("known", [True, False])
async def test_a_request_whose_weights_are_gone_is_recognised_anew(known: bool) -> None:
    """Whether the gateway has heard of it, or finds out by the answer that does not come."""
    old, new = Weights("a", "old"), Weights("b", "new")
    new.load = 9
    gateway = await over(old, new)
    ask = Ask(MODEL, "text", Sampling())
    choice = (await gateway.recognise(ask)).choice
    assert choice.pattern_id == "p-old"
    old.is_gone = True
    if known:
        await gateway.refresh()
    assert await answer(gateway, ask, choice) == ("new", "p-new")


async def test_every_expert_is_in_all_weights() -> None:
    old, new = Weights("a", "old"), Weights("b", "new")
    gateway = await over(old, new)
    ask = Ask(MODEL, "text", Sampling(), pattern="full")
    choice = (await gateway.recognise(ask)).choice
    old.load = 40
    await gateway.refresh()
    assert (await answer(gateway, ask, choice))[0] == "new"
