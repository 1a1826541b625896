"""Answers that grow in steps: who goes on, from where, and with how many experts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from premoe_gateway.domain import (
    Ask,
    Delta,
    Event,
    Finished,
    PatternChoice,
    Sampling,
    Started,
    Swap,
    Tokens,
    WorkerState,
)
from premoe_gateway.search.executor import Outcome, Searcher
from premoe_gateway.search.order import SearchOrder, Steps
from premoe_gateway.search.verifiers.named import NamedVerifiers
from premoe_gateway.search.verifiers.opening import Verifiers
from premoe_gateway.service import Gateway
from support.gateway_doubles import MODEL, EchoWorker, OneTask

from premoe_runtime.formats.errors import Unavailable

PROMPT = (901, 902, 903)
CONTEXT = 64


@dataclass(eq=False)
class Growing(EchoWorker):
    """Says its number of experts ``long`` times, a token each, wherever a prompt leaves off."""

    long: int = 40
    asked: list[Ask] = field(default_factory=list)

    async def state(self) -> WorkerState:
        return replace(await super().state(), budget="4/8", shared_parameters=100, expert_parameters=10)

    async def tokenize(self, ask: Ask, timeout_s: float, *, plain: bool) -> Tokens:
        return Tokens(PROMPT, (), CONTEXT)

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        self.asked.append(ask)
        prompt = tuple(item for item in ask.prompt if isinstance(item, int))
        assert prompt[: len(PROMPT)] == PROMPT
        assert len(prompt) + ask.sampling.max_tokens <= CONTEXT
        before = len(prompt) - len(PROMPT)
        # An answer that goes on is one that was made with as many experts.
        assert set(prompt[len(PROMPT) :]) <= {ask.active_experts}
        yield Started(choice, len(prompt), Swap(0, 0, 0.0))
        made = min(ask.sampling.max_tokens, self.long - before)
        for _ in range(made):
            yield Delta(str(ask.active_experts), token_ids=(ask.active_experts or 0,))
        reason = "stop" if before + made == self.long else "length"
        yield Finished("stop" if reason == "stop" else "length", len(prompt), made, 1.0, 0.0, 0.0)


@dataclass
class Marks:
    """Likes answers of ``likes`` experts; answers ``until`` so often, and then never again."""

    likes: str = "2"
    until: int = 1000
    timeout_s: float = 600.0

    async def score(self, answer: str) -> float:
        self.until -= 1
        if self.until < 0:
            raise Unavailable("verifier judge does not answer", reason="VERIFIER_UNAVAILABLE")
        return 0.9 if answer.startswith(self.likes) else 0.1


class Marked(Verifiers):
    def __init__(self, marks: Marks) -> None:
        super().__init__(NamedVerifiers())
        self._marks = marks

    async def of(self, wanted: object, question: str, *, unfinished: bool = False) -> Marks:
        assert unfinished
        return self._marks


async def run(worker: Growing, marks: Marks, *, max_tokens: int = 0, answers: int = 4, **order: object) -> Outcome:
    gateway = Gateway([worker], OneTask(), on_unknown=None, timeout_s=600)
    await gateway.refresh()
    searcher = Searcher(gateway, Marked(marks), most=16, timeout_s=600)
    ask = Ask(MODEL, "hi", Sampling(max_tokens=max_tokens))
    wanted = replace(SearchOrder((4, 2), steps=Steps(16, 1)), **order)  # type: ignore[arg-type]
    return await searcher.run(lambda number: ask, answers, PatternChoice("full"), wanted, answers)


async def test_children_go_on_from_the_best_with_its_experts() -> None:
    worker = Growing()
    outcome = await run(worker, Marks())
    assert [ask.active_experts for ask in worker.asked] == [4, 4, 2, 2, *[2] * 8]
    assert [found.text for found in outcome.shown] == ["2" * 40] * 4
    assert outcome.rounds == 3
    # Each step counts what it made, and nothing twice.
    assert sum(found.tokens for found in outcome.answers) == 4 * 40
    assert all(not found.text for found in outcome.answers if found.finished is None)


async def test_several_may_go_on() -> None:
    worker = Growing()
    outcome = await run(worker, Marks(), steps=Steps(16, 3))
    second = [ask.active_experts or 0 for ask in worker.asked[4:8]]
    assert sorted(second) == [2, 2, 2, 4]
    assert outcome.shown[0].text == "2" * 40


async def test_a_verifier_that_falls_silent_ends_no_search() -> None:
    outcome = await run(Growing(), Marks(until=5))
    assert "does not answer" in outcome.problem
    assert len(outcome.shown) == 4
    assert all(len(found.text) == 40 for found in outcome.shown)


async def test_an_answer_is_no_longer_than_it_may_be() -> None:
    outcome = await run(Growing(), Marks(), max_tokens=20)
    assert {len(found.text) for found in outcome.shown} == {20}
    assert {found.finished.reason for found in outcome.shown if found.finished is not None} == {"length"}
    outcome = await run(Growing(long=1000), Marks())
    assert {len(found.text) for found in outcome.shown} == {CONTEXT - len(PROMPT)}


async def test_a_mark_ends_it_only_when_the_answer_is_whole() -> None:
    outcome = await run(Growing(), Marks(), enough=0.5)
    assert outcome.ended == "score"
    assert outcome.shown[0].text == "2" * 40


async def test_a_budget_ends_it_with_what_there_is() -> None:
    outcome = await run(Growing(), Marks(), budget=70)
    assert outcome.ended == "budget"
    assert 70 <= sum(found.tokens for found in outcome.answers) <= 74
    assert outcome.shown[0].text.startswith("2" * 16)
    assert all(found.text for found in outcome.shown)
