"""The gateway's logic: keep track of workers, recognise the task, send the request on. No HTTP, no gRPC."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence, Set
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from premoe_servicekit.faults import own_fault
from premoe_servicekit.telemetry import tracer

from premoe_gateway.domain import (
    Ask,
    Event,
    PatternChoice,
    Recognition,
    Sampling,
    Started,
    StoredPattern,
    Tokens,
    WorkerState,
)
from premoe_gateway.ports import Retrieval, Worker
from premoe_gateway.routing.abilities import needs
from premoe_gateway.routing.conversations import Conversations
from premoe_gateway.routing.members import Member, Members
from premoe_gateway.routing.rank import rank
from premoe_gateway.routing.rankings import Rankings
from premoe_gateway.search.cost import ModelFacts
from premoe_gateway.usage import Meter
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import DecisionKind, OnUnknown
from premoe_runtime.formats.errors import Conflict, Exhausted, InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.ranking import Ranking

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Gateway:
    """One gateway in front of some workers, which may come and go, and one retrieval service."""

    def __init__(
        self,
        workers: Sequence[Worker],
        retrieval: Retrieval | None,
        *,
        on_unknown: OnUnknown | None,
        timeout_s: float,
    ) -> None:
        self._members = Members(workers)
        self._conversations = Conversations()
        self._rankings = Rankings(retrieval)
        self._retrieval = retrieval
        self._on_unknown = on_unknown
        self._timeout_s = timeout_s
        self._stopping = False
        self.retries = {"probe": 0, "tokenize": 0, "generate": 0}
        """Calls that were sent to another worker, by kind."""

    def stop(self) -> None:
        """Say of everything that fails from now on, and of what is still asked, that the gateway is stopping."""
        self._stopping = True

    def add(self, worker: Worker) -> None:
        """Let a worker take part from the next ``refresh`` on."""
        self._members.add(worker)

    def remove(self, address: str) -> Callable[[], int]:
        """Send a worker no more requests. Returns a function that tells how many of our calls still run there."""
        return self._members.remove(address)

    async def refresh(self) -> None:
        """Ask every worker for its state once, all at the same time."""
        await self._members.refresh()

    def healthy(self) -> list[WorkerState]:
        """Workers that answered last time."""
        return self._members.healthy()

    def known(self) -> list[tuple[str, WorkerState | None]]:
        """Every worker's address and what it said last; None while it does not serve. Any thread."""
        return self._members.known()

    async def serving(self) -> list[WorkerState]:
        """Workers that answer; asks again when none answered last time, as one slow answer tells little."""
        if not self.healthy():
            await self.refresh()
        return self.healthy()

    def facts(self, model: str) -> ModelFacts:
        """What a worker of the model said of its size, zeros where it did not, or where none has answered lately."""
        told = [state for state in self.healthy() if state.model == model]
        if not told or not told[0].budget:
            return ModelFacts(0)
        return ModelFacts(Budget.parse(told[0].budget).active, told[0].shared_parameters, told[0].expert_parameters)

    async def patterns(self, weights_id: str) -> Sequence[StoredPattern]:
        """Members of the live set. Raises InvalidInput without a retrieval service, Unavailable."""
        return await self._retriever().patterns(weights_id, self._timeout_s)

    async def ranking(self, pattern_id: str) -> Ranking:
        """One of them. Raises NotFound, Unavailable."""
        return await self._retriever().ranking(pattern_id, self._timeout_s)

    async def recognise(self, ask: Ask) -> Recognition:
        """Decide the pattern of a request: as named, or by Probe and Retrieve.

        Raises NotFound (model, pattern), Conflict with reason UNKNOWN_TASK (policy reject), Unavailable.
        """
        if ask.pattern:
            return Recognition(await self._named(ask.pattern, await self._weights_of(ask.model)))
        started = time.perf_counter()
        found = await self._ask(ask, "probe", lambda worker: worker.probe(ask, self._timeout_s))
        probed = time.perf_counter()
        retrieval = self._retriever()
        with tracer().start_as_current_span("retrieve") as span:
            choice = await retrieval.retrieve(found, self._on_unknown, self._timeout_s)
            span.set_attribute("premoe.expert_set.id", choice.pattern_id or choice.decision)
            span.set_attribute("premoe.retrieval.score", choice.score)
            span.set_attribute("premoe.retrieval.fallback", choice.decision != "specialist")
        ended = time.perf_counter()
        if choice.decision != "specialist":
            log.info("prompt of no stored task: %s (%s)", choice.decision, choice.reason)
        if choice.decision == "reject":
            raise Conflict(f"no stored task fits this prompt: {choice.reason}", reason="UNKNOWN_TASK")
        if choice.pattern_id:
            choice = replace(choice, weights_id=found.weights_id)
        return Recognition(choice, (probed - started) * 1e3, (ended - probed) * 1e3)

    async def generate(self, ask: Ask, choice: PatternChoice) -> AsyncGenerator[Event, None]:
        """The answer's events from the worker that suits the request best (``routing.rank``).

        A worker that goes away, falls silent or has no room before its first token is left out and the next one asked,
        so the first event comes together with the second. Closing the iterator early cancels the request on the worker.
        """
        failed: set[Worker] = set()
        meter = Meter(ask)
        while True:
            choice = await self._of_served_weights(ask, choice, failed)
            member = await self._choose(ask, choice, failed)
            opening: list[Event] = []
            began = False
            try:
                with member.running(choice.pattern_id) as worker:
                    async with aclosing(worker.generate(ask, choice, self._timeout_s)) as events:
                        while (event := await self._next(events, member, ask, failed, began=began)) is not None:
                            meter.note(event)
                            if not began and isinstance(event, Started):
                                opening.append(event)
                                continue
                            if not began:
                                began = True
                                self._conversations.note(ask.model, ask.prompt, worker.address)
                            for held in opening:
                                yield held
                            opening.clear()
                            yield event
                return
            except NotFound as error:
                if error.reason == "PATTERN_NOT_FOUND":  # the live set named it, not the caller
                    raise own_fault(error) from error
                raise
            except (Unavailable, Exhausted) as error:
                if not await self._another(member, ask.model, failed, error) or began:
                    raise
                self.retries["generate"] += 1

    async def tokenize(self, ask: Ask, *, plain: bool = False) -> Tokens:
        """The tokens of its prompt. Raises NotFound (model), InvalidInput, Unavailable."""
        return await self._ask(ask, "tokenize", lambda worker: worker.tokenize(ask, self._timeout_s, plain=plain))

    async def detokenize(self, model: str, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of tokens. Raises what ``tokenize`` raises."""
        return await self._ask(
            Ask(model, "", Sampling()),
            "tokenize",
            lambda worker: worker.detokenize(model, ids, skip_special=skip_special, timeout_s=self._timeout_s),
        )

    async def text_of(self, ask: Ask) -> str:
        """A completion's prompt as text, special tokens left out of what came as token ids."""
        if isinstance(ask.prompt, str):
            return ask.prompt
        ids = [item for item in ask.prompt if isinstance(item, int)]
        return await self.detokenize(ask.model, ids, skip_special=True)

    async def only_model(self) -> str:
        """The name of the one model that is served. Raises InvalidInput: several are; Unavailable: none is."""
        names = {state.model for state in await self.serving()}
        if len(names) > 1:
            raise InvalidInput(f"name the model; there is {', '.join(sorted(names))}", reason="MODEL_MISSING")
        if not names:
            raise Unavailable("no worker answers", reason="NO_WORKER")
        return names.pop()

    async def _ask(self, ask: Ask, call: str, answer: Callable[[Worker], Awaitable[_T]]) -> _T:
        """What the idlest worker answers, or another one when that has gone or has no room."""
        failed: set[Worker] = set()
        while True:
            member = await self._choose(ask, None, failed)
            try:
                with member.called() as worker:
                    return await answer(worker)
            except (Unavailable, Exhausted) as error:
                if not await self._another(member, ask.model, failed, error):
                    raise
                self.retries[call] += 1

    async def _of_served_weights(self, ask: Ask, choice: PatternChoice, failed: Set[Worker]) -> PatternChoice:
        """The choice, or one made anew where only workers of other weights are left: the model changed meanwhile."""
        left = [member for member in await self._members.serving(ask.model) if member.worker not in failed]
        if not left or any(member.has_weights(choice.weights_id) for member in left):
            return choice
        return (await self.recognise(ask)).choice

    async def _choose(self, ask: Ask, choice: PatternChoice | None, failed: Set[Worker]) -> Member:
        """The best of the workers that have not failed this request; for a probe (no choice) the idlest."""
        self._check_stopping()
        several = choice is not None and len(self._members.of(ask.model)) > 1
        pattern_id = "" if choice is None else choice.pattern_id
        ranking = await self._rankings.of(pattern_id) if several else None
        talked = self._conversations.worker_of(ask.model, ask.prompt) if several else ""
        serving = {member.worker.address: member for member in await self._able(ask)}
        ranked = rank(
            member.candidate(pattern_id, ranking, talked=address == talked)
            for address, member in serving.items()
            if member.worker not in failed and member.has_weights("" if choice is None else choice.weights_id)
        )
        if not ranked:
            raise Unavailable(f"no worker for {ask.model} answers", reason="NO_WORKER")
        return serving[ranked[0].address]

    async def _able(self, ask: Ask) -> list[Member]:
        """Workers that know all that a request asks for. Raises InvalidInput: none does; what ``serving`` raises."""
        serving, needed = await self._members.serving(ask.model), needs(ask)
        able = [member for member in serving if member.knows(needed)]
        if not able:
            raise InvalidInput(
                f"no worker of {ask.model!r} knows {', '.join(sorted(needed))}: they are of an older version than this "
                "gateway; upgrade them, or leave it out of the request",
                reason="ABILITY_MISSING",
            )
        return able

    async def _next(
        self, events: AsyncGenerator[Event, None], member: Member, ask: Ask, failed: Set[Worker], *, began: bool
    ) -> Event | None:
        """The next event, None after the last. Before the first token, Unavailable when the worker falls silent."""
        if began:
            return await anext(events, None)
        event = asyncio.ensure_future(anext(events, None))
        silent = asyncio.ensure_future(member.silent.wait())
        try:
            await asyncio.wait({event, silent}, return_when=asyncio.FIRST_COMPLETED)
            if event.done() or not await self._members.has_others(
                ask.model, {*failed, member.worker}, look_again=False
            ):
                return await event
            raise Unavailable(f"worker {member.worker.address} has fallen silent", reason="WORKER_SILENT")
        finally:
            for future in (event, silent):
                future.cancel()
            await asyncio.gather(event, silent, return_exceptions=True)

    async def _another(self, member: Member, model: str, failed: set[Worker], error: PremoeError) -> bool:
        """Note that a worker failed a request; whether another one is left to ask.

        Who has no room is no reason to look for workers again: under load that would be one more question to all of
        them for every request refused.
        """
        self._check_stopping(error)
        member.note(error)
        failed.add(member.worker)
        if error.reason == "DEADLINE_EXCEEDED":
            return False
        return await self._members.has_others(model, failed, look_again=isinstance(error, Unavailable))

    async def _weights_of(self, model: str) -> str:
        self._check_stopping()
        (first, *_) = await self._members.serving(model)
        return first.state.weights_id if first.state is not None else ""

    def _check_stopping(self, cause: Exception | None = None) -> None:
        if self._stopping:
            raise Unavailable("the gateway is stopping; send the request again", reason="STOPPING") from cause

    def _retriever(self) -> Retrieval:
        if self._retrieval is None:
            raise InvalidInput(
                "this gateway has no retrieval service; name the pattern in the request", reason="NO_RETRIEVAL"
            )
        return self._retrieval

    async def _named(self, name: str, weights_id: str) -> PatternChoice:
        if name == "full":
            return PatternChoice("full", reason="named in the request")
        members = await self.patterns(weights_id)
        member = _find(name, members)
        if member is None:
            known = ", ".join(sorted({pattern.task for pattern in members}))
            raise NotFound(f"pattern {name!r} is not in the live set; there is {known}", reason="PATTERN_NOT_FOUND")
        decision: DecisionKind = "generalist" if member.generalist else "specialist"
        reason = "named in the request"
        return PatternChoice(decision, member.pattern_id, member.task, reason=reason, weights_id=weights_id)


def _find(name: str, members: Sequence[StoredPattern]) -> StoredPattern | None:
    for member in members:
        if name in (member.pattern_id, member.task) or (name == "generalist" and member.generalist):
            return member
    return None
