"""Runs a search: samples what the plan says, has answers judged as they come, and ends what runs when it is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from premoe_gateway.domain import Ask, Delta, Event, Finished, PatternChoice, Started, Tokens, Turn
from premoe_gateway.search.cost import ModelFacts
from premoe_gateway.search.order import SearchOrder, Steps
from premoe_gateway.search.plan import Ended, Plan, Trial, children, ended, next_round, ranked, spread
from premoe_gateway.search.verifiers.base import Verifier
from premoe_gateway.search.verifiers.opening import Verifiers
from premoe_gateway.search.votes import agreement
from premoe_runtime.formats.errors import Exhausted, InvalidInput, PremoeError, Unavailable

_MOST_STEPS = 64
"""Of one answer; longer ones have larger steps."""

log = logging.getLogger(__name__)


class Answering(Protocol):
    """What a search asks of the gateway."""

    def generate(self, ask: Ask, choice: PatternChoice) -> AsyncGenerator[Event, None]: ...

    async def tokenize(self, ask: Ask, *, plain: bool = False) -> Tokens:
        """Of its prompt."""
        ...

    def facts(self, model: str) -> ModelFacts:
        """Of a model that is served; ``active`` 0 where nobody tells."""
        ...


@dataclass(slots=True, eq=False)
class Found:
    """One answer of a search, whole (``finished``), cut, or failed (``error``)."""

    number: int
    experts: int
    round: int
    text: str = ""
    tokens: int = 0
    started: Started | None = None
    finished: Finished | None = None
    error: PremoeError | None = None
    score: float | None = None
    ids: tuple[int, ...] = ()
    """Of the answer so far, where it grows in steps: what it goes on from, and its own ``tokens``."""
    goes_on: bool = False
    """Whether its step has ended, and the answer has not."""
    left_behind: bool = False
    """Whether others have gone on from here, or from better ones; nobody wants its text any more."""

    def child(self, number: int, round_: int) -> Found:
        """What goes on from here. Bytes of an unfinished character are written by whoever completes it."""
        return Found(number, self.experts, round_, self.text.rstrip("\ufffd"), ids=self.ids)

    def leave_behind(self) -> None:
        """Forget what it says, unless it is whole: steps would add up to a multiple of an answer."""
        if self.finished is None:
            self.text, self.ids, self.left_behind = "", (), True

    def trial(self, votes: float) -> Trial:
        return Trial(self.number, self.experts, self.tokens, self.score, votes, self.finished is not None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """All answers of a search, best first, and how it went. ``problem``: why some were not judged; empty: all were."""

    answers: tuple[Found, ...]
    votes: tuple[float, ...]
    """Of each answer, the share of whole ones that say the same."""
    rounds: int
    ended: Ended
    problem: str
    facts: ModelFacts

    @property
    def shown(self) -> tuple[Found, ...]:
        """Those that are answers: the whole ones, or what there is of the others where none came to its end."""
        whole = tuple(found for found in self.answers if found.finished is not None)
        begun = (found for found in self.answers if found.started is not None and not found.left_behind)
        return whole or tuple(begun)


class Searcher:
    """Runs searches over one gateway. Use from one event loop."""

    def __init__(self, gateway: Answering, verifiers: Verifiers, *, most: int, timeout_s: float) -> None:
        self._gateway = gateway
        self._verifiers = verifiers
        self._most = most
        self._timeout_s = timeout_s

    def check(self, answers: int) -> None:
        """Raises InvalidInput: a search may not have so many."""
        if not self._most:
            raise InvalidInput("premoe.search: this gateway runs no searches", reason="SEARCH_OFF")
        if not 2 <= answers <= self._most:
            raise InvalidInput(f"n: a search has 2 to {self._most} answers here", reason="SEARCH_ANSWERS")

    async def run(
        self, ask: Callable[[int], Ask], answers: int, choice: PatternChoice, order: SearchOrder, at_once: int
    ) -> Outcome:
        """The answers to what ``ask`` says of each by its number, ``at_once`` of them at a time.

        Raises what the first answer failed with when none came; InvalidInput of any; Unavailable
        (VERIFIER_UNAVAILABLE) where an answer that must be judged was not, or DEADLINE_EXCEEDED.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        facts = self._gateway.facts(ask(0).model)
        if not (order.active_experts or facts.active):
            raise InvalidInput(
                "premoe.search.active_experts: must be given, as no worker says how many it uses",
                reason="SEARCH_EXPERTS",
            )
        experts = tuple(sorted(order.active_experts, reverse=True)) or spread(facts.active)
        plan = Plan(answers, experts, order.rounds, order.budget, order.enough)
        unfinished = order.steps is not None
        verifier = await self._verifiers.of(order.verifier, question_of(ask(0)), unfinished=unfinished)
        search = _Search(self._gateway, plan, order, verifier, ask, choice, at_once, deadline)
        rounds, end = await (search.run() if order.steps is None else search.grow(order.steps))
        return _outcome(search, rounds, end, facts)


class _Search:
    def __init__(
        self,
        gateway: Answering,
        plan: Plan,
        order: SearchOrder,
        verifier: Verifier | None,
        ask: Callable[[int], Ask],
        choice: PatternChoice,
        at_once: int,
        deadline: float,
    ) -> None:
        self.plan = plan
        self.order = order
        self.answers: list[Found] = []
        self.problem = ""
        self._gateway = gateway
        self._verifier = verifier
        self._ask = ask
        self._choice = choice
        self._places = asyncio.Semaphore(at_once)
        self._deadline = deadline
        self._over = asyncio.Event()
        self._step: int | None = None
        self._prompt: Tokens | None = None

    async def run(self) -> tuple[int, Ended]:
        """Rounds played, and why there are no more."""
        played = 0
        while experts := next_round(self.plan, self.trials(), played):
            first = len(self.answers)
            self.answers += [Found(first + number, each, played) for number, each in enumerate(experts)]
            played += 1
            if not await self._round(self.answers[first:]):
                return played, "deadline"
        return played, ended(self.plan, self.trials()) or "answers"

    async def grow(self, steps: Steps) -> tuple[int, Ended]:
        """Steps made, and why there are no more: as many whole answers as were asked for, or none that goes on."""
        self._prompt = await self._gateway.tokenize(self._ask(0))
        self._step = steps.tokens
        first = next_round(replace(self.plan, rounds=1), [], 0)
        growing = [Found(number, experts, 0) for number, experts in enumerate(first)]
        made = 0
        while growing:
            self.answers += growing
            made += 1
            if not await self._round(growing):
                return made, "deadline"
            if self._over.is_set():
                break
            unfinished = {found.number: found for found in growing if found.goes_on}
            left = self.plan.answers - sum(found.finished is not None for found in self.answers)
            parents = children([found.trial(0.0) for found in unfinished.values()], steps.keep, max(0, left))
            grown = growing
            growing = [
                unfinished[parent].child(len(self.answers) + place, made) for place, parent in enumerate(parents)
            ]
            if growing:
                for found in grown:
                    found.leave_behind()
        return made, ended(self.plan, self._whole_trials()) or "answers"

    def trials(self) -> list[Trial]:
        """What the plan sees; without a verifier votes are scores."""
        votes = votes_of(self.answers, self.order)
        trials = [found.trial(share) for found, share in zip(self.answers, votes, strict=True)]
        if self._verifier is not None:
            return trials
        return [replace(trial, score=trial.votes if trial.whole else None) for trial in trials]

    async def _round(self, answers: list[Found]) -> bool:
        """Sample them; whether there was time. Those under way when the search is over are cancelled."""
        tasks = [asyncio.create_task(self._one(found)) for found in answers]
        over = asyncio.create_task(self._over.wait())
        gathered = asyncio.gather(*tasks)
        try:
            left = max(0.0, self._deadline - asyncio.get_running_loop().time())
            waited: set[asyncio.Future[Any]] = {gathered, over}
            await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if gathered.done():
                gathered.result()
            return gathered.done() or over.done()
        finally:
            for task in (*tasks, over):
                task.cancel()
            await asyncio.gather(*tasks, over, gathered, return_exceptions=True)

    async def _one(self, found: Found) -> None:
        try:
            async with self._places:
                await self._sample(found)
        except (Unavailable, Exhausted) as error:
            # One that finds no room or loses its worker costs the others nothing.
            found.error = error
            return
        if (found.finished is not None or found.goes_on) and self._verifier is not None:
            await self._judge(found, self._verifier)
        if ended(self.plan, self._whole_trials()) in ("score", "budget"):
            self._over.set()

    async def _sample(self, found: Found) -> None:
        ask, room = self._asked(found)
        async with aclosing(self._gateway.generate(ask, self._choice)) as events:
            async for event in events:
                if isinstance(event, Started):
                    found.started = event
                elif isinstance(event, Delta):
                    found.text += event.text
                    found.tokens += event.tokens
                    found.ids += event.token_ids
                    if ended(self.plan, self._counted()) == "budget":
                        self._over.set()
                    if self._over.is_set():
                        return
                elif isinstance(event, Finished):
                    found.tokens = event.completion_tokens
                    found.goes_on = room > 0 and event.reason == "length"
                    found.finished = None if found.goes_on else event

    def _asked(self, found: Found) -> tuple[Ask, int]:
        """What is asked for an answer, or for its next step; how many tokens may come after it, 0 without steps."""
        ask = replace(self._ask(found.number), active_experts=found.experts)
        if self._step is None or self._prompt is None:
            return ask, 0
        prompt = (*self._prompt.ids, *found.ids)
        room = self._prompt.context - len(prompt)
        if ask.sampling.max_tokens:
            room = min(room, ask.sampling.max_tokens - len(found.ids))
        size = max(1, min(max(self._step, -(-(room + len(found.ids)) // _MOST_STEPS)), room))
        return replace(ask, prompt=prompt, sampling=replace(ask.sampling, max_tokens=size)), room - size

    def _whole_trials(self) -> list[Trial]:
        """A mark of an unfinished answer ends no search."""
        return [trial if trial.whole else replace(trial, score=None) for trial in self.trials()]

    def _counted(self) -> list[Trial]:
        return [found.trial(0.0) for found in self.answers]

    async def _judge(self, found: Found, verifier: Verifier) -> None:
        """Its score. A verifier that has failed once is not asked again: the next answer would wait for it, too."""
        if self.problem:
            return
        try:
            async with asyncio.timeout(verifier.timeout_s):
                found.score = min(1.0, max(0.0, await verifier.score(found.text)))
        except TimeoutError:
            self.problem = f"the verifier did not answer within {verifier.timeout_s:g} s"
        except Unavailable as error:
            self.problem = str(error)
        if self.problem:
            log.warning("a search goes on without its verifier: %s", self.problem)


def question_of(ask: Ask) -> str:
    """What a verifier is shown: the last turn of a conversation, or a prompt that is text."""
    if isinstance(ask.prompt, str):
        return ask.prompt
    turns = [turn for turn in ask.prompt if isinstance(turn, Turn)]
    return turns[-1].content if turns else ""


def votes_of(answers: list[Found], order: SearchOrder) -> list[float]:
    """Of each answer the share of whole ones that say the same; 0 of one that is not whole."""
    whole = [found for found in answers if found.finished is not None]
    shares = dict(zip((found.number for found in whole), agreement([f.text for f in whole], order.vote), strict=True))
    return [shares.get(found.number, 0.0) for found in answers]


def _outcome(search: _Search, rounds: int, end: Ended, facts: ModelFacts) -> Outcome:
    order = ranked(search.trials())
    answers = tuple(search.answers[trial.number] for trial in order)
    outcome = Outcome(answers, tuple(trial.votes for trial in order), rounds, end, search.problem, facts)
    if not outcome.shown:
        failed = next((found.error for found in search.answers if found.error is not None), None)
        raise failed or Unavailable("no answer of the search came in time", reason="DEADLINE_EXCEEDED")
    if search.order.require_verified and outcome.shown[0].score is None:
        why = search.problem or f"the search ended by its {end} before an answer was judged"
        raise Unavailable(f"premoe.search.require_verified: {why}", reason="VERIFIER_UNAVAILABLE")
    return outcome
