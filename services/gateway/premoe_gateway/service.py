"""The gateway's logic: keep track of workers, recognise the task, send the request on. No HTTP, no gRPC."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from premoe_servicekit.telemetry import tracer

from premoe_gateway.domain import (
    Ask,
    Decision,
    Event,
    OnUnknown,
    PatternChoice,
    Recognition,
    StoredPattern,
    WorkerState,
)
from premoe_gateway.ports import Retrieval, Worker
from premoe_gateway.routing import choose_worker
from premoe_runtime.formats.errors import Conflict, InvalidInput, NotFound, PremoeError, Unavailable

_REMEMBERED_PATTERNS = 8


class Gateway:
    """One gateway in front of some workers and one retrieval service."""

    def __init__(
        self,
        workers: Sequence[Worker],
        retrieval: Retrieval | None,
        *,
        on_unknown: OnUnknown | None,
        timeout_s: float,
    ) -> None:
        self._workers = {worker.address: worker for worker in workers}
        self._retrieval = retrieval
        self._on_unknown = on_unknown
        self._timeout_s = timeout_s
        self._states: dict[str, WorkerState] = {}
        self._recent = {address: deque[str](maxlen=_REMEMBERED_PATTERNS) for address in self._workers}
        self._in_flight = dict.fromkeys(self._workers, 0)

    async def refresh(self) -> None:
        """Ask every worker for its state once, all at the same time."""
        await asyncio.gather(*(self._refresh_one(worker) for worker in self._workers.values()))

    def healthy(self) -> list[WorkerState]:
        """Workers that answered last time."""
        return [self._states[address] for address in sorted(self._states)]

    async def serving(self) -> list[WorkerState]:
        """Workers that answer; asks again when none answered last time, as one slow answer tells little."""
        if not self._states:
            await self.refresh()
        return self.healthy()

    async def recognise(self, ask: Ask) -> Recognition:
        """Decide the pattern of a request: as named, or by Probe and Retrieve.

        Raises NotFound (model, pattern), Conflict with reason UNKNOWN_TASK (policy reject), Unavailable.
        """
        states = await self._serving(ask.model)
        if ask.pattern:
            return Recognition(await self._named(ask.pattern, states[0].weights_id))
        worker = self._workers[min(states, key=lambda state: (self._busy(state), state.address)).address]
        started = time.perf_counter()
        signature, weights_id = await worker.probe(ask.prompt, self._timeout_s)
        probed = time.perf_counter()
        retrieval = self._retriever()
        with tracer().start_as_current_span("retrieve") as span:
            choice = await retrieval.retrieve(weights_id, signature, self._on_unknown, self._timeout_s)
            span.set_attribute("premoe.expert_set.id", choice.pattern_id or choice.decision)
            span.set_attribute("premoe.retrieval.score", choice.score)
            span.set_attribute("premoe.retrieval.fallback", choice.decision != "specialist")
        ended = time.perf_counter()
        if choice.decision == "reject":
            raise Conflict(f"no stored task fits this prompt: {choice.reason}", reason="UNKNOWN_TASK")
        return Recognition(choice, (probed - started) * 1e3, (ended - probed) * 1e3)

    async def generate(self, ask: Ask, choice: PatternChoice) -> AsyncGenerator[Event, None]:
        """The answer's events from the worker that suits the pattern best.

        A worker that turns out to be down before its first event is left out and the next one asked. Closing the
        iterator early cancels the request on the worker.
        """
        states = await self._serving(ask.model)
        while True:
            state = choose_worker([self._loaded(state) for state in states], choice.pattern_id, self._recent)
            if state is None:
                raise Unavailable(f"no worker for {ask.model} answers", reason="NO_WORKER")
            began = False
            try:
                async with aclosing(self._run(state.address, ask, choice)) as events:
                    async for event in events:
                        began = True
                        yield event
                return
            except Unavailable as error:
                if began or error.reason == "DEADLINE_EXCEEDED" or len(states) == 1:
                    raise
                # It may only lack something behind it; the next poll tells whether it serves.
                states = [other for other in states if other.address != state.address]

    async def _run(self, address: str, ask: Ask, choice: PatternChoice) -> AsyncGenerator[Event, None]:
        recent = self._recent[address]
        if choice.pattern_id in recent:
            recent.remove(choice.pattern_id)
        if choice.pattern_id:
            recent.appendleft(choice.pattern_id)
        self._in_flight[address] += 1
        try:
            async with aclosing(self._workers[address].generate(ask, choice, self._timeout_s)) as events:
                async for event in events:
                    yield event
        finally:
            self._in_flight[address] -= 1

    async def _refresh_one(self, worker: Worker) -> None:
        try:
            self._states[worker.address] = await worker.state()
        except PremoeError:
            self._states.pop(worker.address, None)

    async def _serving(self, model: str) -> list[WorkerState]:
        """Healthy workers of a model; asks again before it says that there are none."""
        for attempt in range(2):
            states = [state for state in self.healthy() if state.model == model]
            if states:
                return states
            if not attempt:
                await self.refresh()
        names = sorted({state.model for state in self.healthy()})
        if not names:
            raise Unavailable("no worker answers; try again in a moment", reason="NO_WORKER")
        raise NotFound(f"model {model!r} is not served here; there is {', '.join(names)}", reason="MODEL_NOT_FOUND")

    def _busy(self, state: WorkerState) -> int:
        return max(state.load, self._in_flight[state.address])

    def _loaded(self, state: WorkerState) -> WorkerState:
        """The state with our own requests counted in, which the last poll cannot know."""
        return replace(state, waiting=state.waiting + self._busy(state) - state.load)

    def _retriever(self) -> Retrieval:
        if self._retrieval is None:
            raise InvalidInput(
                "this gateway has no retrieval service; name the pattern in the request", reason="NO_RETRIEVAL"
            )
        return self._retrieval

    async def _named(self, name: str, weights_id: str) -> PatternChoice:
        if name == "full":
            return PatternChoice("full", reason="named in the request")
        members = await self._retriever().patterns(weights_id, self._timeout_s)
        member = _find(name, members)
        if member is None:
            known = ", ".join(sorted({pattern.task for pattern in members}))
            raise NotFound(f"pattern {name!r} is not in the live set; there is {known}", reason="PATTERN_NOT_FOUND")
        decision: Decision = "generalist" if member.generalist else "specialist"
        return PatternChoice(decision, member.pattern_id, member.task, reason="named in the request")


def _find(name: str, members: Sequence[StoredPattern]) -> StoredPattern | None:
    for member in members:
        if name in (member.pattern_id, member.task) or (name == "generalist" and member.generalist):
            return member
    return None
