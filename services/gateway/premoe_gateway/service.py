"""The gateway's logic: keep track of workers, recognise the task, send the request on. No HTTP, no gRPC."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence, Set
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace

from premoe_servicekit.faults import own_fault
from premoe_servicekit.telemetry import tracer

from premoe_gateway.domain import (
    Ask,
    Event,
    PatternChoice,
    Recognition,
    Started,
    StoredPattern,
    WorkerState,
)
from premoe_gateway.ports import Retrieval, Worker
from premoe_gateway.routing import choose_worker
from premoe_runtime.formats.choices import DecisionKind, OnUnknown
from premoe_runtime.formats.errors import Conflict, InvalidInput, NotFound, PremoeError, Unavailable

log = logging.getLogger(__name__)

_REMEMBERED_PATTERNS = 8


@dataclass(slots=True, eq=False)
class _Member:
    """A worker and what we know of it. Requests hold on to it, even after it has left."""

    worker: Worker
    state: WorkerState | None = None
    """What it said last; None while it does not serve."""
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_PATTERNS))
    """Patterns that it ran lately, newest first."""
    in_flight: int = 0
    """Our sequences there."""
    calls: int = 0
    """Our calls to it of every kind: its connection stays open for them."""

    @contextmanager
    def called(self) -> Iterator[Worker]:
        self.calls += 1
        try:
            yield self.worker
        finally:
            self.calls -= 1

    @property
    def serving(self) -> WorkerState:
        """Its state with our own requests counted in, which the last poll cannot know."""
        assert self.state is not None, "only members that serve are chosen from"
        return replace(self.state, waiting=self.state.waiting + max(0, self.in_flight - self.state.load))


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
        self._members = {worker.address: _Member(worker) for worker in workers}
        self._retrieval = retrieval
        self._on_unknown = on_unknown
        self._timeout_s = timeout_s
        self._models: set[str] = set()
        self._stopping = False
        self.retries = {"probe": 0, "generate": 0}
        """Calls that were sent to another worker, by kind."""

    def stop(self) -> None:
        """Say of everything that fails from now on, and of what is still asked, that the gateway is stopping."""
        self._stopping = True

    def add(self, worker: Worker) -> None:
        """Let a worker take part from the next ``refresh`` on."""
        self._members[worker.address] = _Member(worker)

    def remove(self, address: str) -> Callable[[], int]:
        """Send a worker no more requests. Returns a function that tells how many of our calls still run there."""
        member = self._members.pop(address)
        return lambda: member.calls

    async def refresh(self) -> None:
        """Ask every worker for its state once, all at the same time."""
        await asyncio.gather(*(self._refresh_one(member) for member in self._members.values()))

    def healthy(self) -> list[WorkerState]:
        """Workers that answered last time."""
        return [state for _, state in self.known() if state is not None]

    def known(self) -> list[tuple[str, WorkerState | None]]:
        """Every worker's address and what it said last; None while it does not serve. Any thread."""
        return [(address, member.state) for address, member in sorted(self._members.items())]

    async def serving(self) -> list[WorkerState]:
        """Workers that answer; asks again when none answered last time, as one slow answer tells little."""
        if not self.healthy():
            await self.refresh()
        return self.healthy()

    async def recognise(self, ask: Ask) -> Recognition:
        """Decide the pattern of a request: as named, or by Probe and Retrieve.

        Raises NotFound (model, pattern), Conflict with reason UNKNOWN_TASK (policy reject), Unavailable.
        """
        if ask.pattern:
            members = await self._serving(ask.model)
            return Recognition(await self._named(ask.pattern, members[0].serving.weights_id))
        started = time.perf_counter()
        signature, weights_id = await self._probe(ask)
        probed = time.perf_counter()
        retrieval = self._retriever()
        with tracer().start_as_current_span("retrieve") as span:
            choice = await retrieval.retrieve(weights_id, signature, self._on_unknown, self._timeout_s)
            span.set_attribute("premoe.expert_set.id", choice.pattern_id or choice.decision)
            span.set_attribute("premoe.retrieval.score", choice.score)
            span.set_attribute("premoe.retrieval.fallback", choice.decision != "specialist")
        ended = time.perf_counter()
        if choice.decision != "specialist":
            log.info("prompt of no stored task: %s (%s)", choice.decision, choice.reason)
        if choice.decision == "reject":
            raise Conflict(f"no stored task fits this prompt: {choice.reason}", reason="UNKNOWN_TASK")
        return Recognition(choice, (probed - started) * 1e3, (ended - probed) * 1e3)

    async def generate(self, ask: Ask, choice: PatternChoice) -> AsyncGenerator[Event, None]:
        """The answer's events from the worker that suits the pattern best.

        A worker that goes away before its first token is left out and the next one asked, so the first event comes
        together with the second. Closing the iterator early cancels the request on the worker.
        """
        failed: set[Worker] = set()
        while True:
            member = await self._choose(ask.model, choice.pattern_id, failed)
            opening: list[Event] = []
            began = False
            try:
                async with aclosing(self._run(member, ask, choice)) as events:
                    async for event in events:
                        if not began and isinstance(event, Started):
                            opening.append(event)
                            continue
                        began = True
                        for held in opening:
                            yield held
                        opening.clear()
                        yield event
                return
            except NotFound as error:
                if error.reason == "PATTERN_NOT_FOUND":  # the live set named it, not the caller
                    raise own_fault(error) from error
                raise
            except Unavailable as error:
                self._check_stopping(error)
                failed.add(member.worker)
                if began or error.reason == "DEADLINE_EXCEEDED" or not await self._others(ask.model, failed):
                    raise
                self.retries["generate"] += 1

    async def _probe(self, ask: Ask) -> tuple[list[float], str]:
        """Signature and weights from the idlest worker, or from another one when that has gone."""
        failed: set[Worker] = set()
        while True:
            members = [member for member in await self._serving(ask.model) if member.worker not in failed]
            member = min(members, key=lambda member: (member.serving.load, member.worker.address))
            try:
                with member.called() as worker:
                    return await worker.probe(ask.prompt, self._timeout_s)
            except Unavailable as error:
                self._check_stopping(error)
                failed.add(member.worker)
                if error.reason == "DEADLINE_EXCEEDED" or not await self._others(ask.model, failed):
                    raise
                self.retries["probe"] += 1

    async def _choose(self, model: str, pattern_id: str, failed: Set[Worker]) -> _Member:
        members = {
            member.worker.address: member for member in await self._serving(model) if member.worker not in failed
        }
        recent = {address: member.recent for address, member in members.items()}
        state = choose_worker([member.serving for member in members.values()], pattern_id, recent)
        if state is None:
            raise Unavailable(f"no worker for {model} answers", reason="NO_WORKER")
        return members[state.address]

    async def _others(self, model: str, failed: Set[Worker]) -> bool:
        """Whether a worker is left that has not failed this request; looks again before it says no."""
        for attempt in range(2):
            if any(member.worker not in failed for member in self._of(model)):
                return True
            if not attempt:
                await self.refresh()
        return False

    async def _run(self, member: _Member, ask: Ask, choice: PatternChoice) -> AsyncGenerator[Event, None]:
        if choice.pattern_id in member.recent:
            member.recent.remove(choice.pattern_id)
        if choice.pattern_id:
            member.recent.appendleft(choice.pattern_id)
        member.in_flight += 1
        try:
            with member.called() as worker:
                async with aclosing(worker.generate(ask, choice, self._timeout_s)) as events:
                    async for event in events:
                        yield event
        finally:
            member.in_flight -= 1

    async def _refresh_one(self, member: _Member) -> None:
        try:
            with member.called() as worker:
                member.state = await worker.state()
            self._models.add(member.state.model)
        except PremoeError:
            member.state = None

    def _of(self, model: str) -> list[_Member]:
        """Healthy workers of a model."""
        members = (member for _, member in sorted(self._members.items()))
        return [member for member in members if member.state is not None and member.state.model == model]

    async def _serving(self, model: str) -> list[_Member]:
        """Healthy workers of a model, at least one; asks again before it says that there are none.

        A model that was served before is Unavailable: its workers are on their way. One never heard of is NotFound
        while others are served.
        """
        self._check_stopping()
        for attempt in range(2):
            members = self._of(model)
            if members:
                return members
            if not attempt:
                await self.refresh()
        names = sorted({state.model for state in self.healthy()})
        if not names:
            raise Unavailable("no worker answers; try again in a moment", reason="NO_WORKER")
        if model in self._models:
            raise Unavailable(f"no worker of {model!r} answers; try again in a moment", reason="NO_WORKER")
        raise NotFound(f"model {model!r} is not served here; there is {', '.join(names)}", reason="MODEL_NOT_FOUND")

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
        members = await self._retriever().patterns(weights_id, self._timeout_s)
        member = _find(name, members)
        if member is None:
            known = ", ".join(sorted({pattern.task for pattern in members}))
            raise NotFound(f"pattern {name!r} is not in the live set; there is {known}", reason="PATTERN_NOT_FOUND")
        decision: DecisionKind = "generalist" if member.generalist else "specialist"
        return PatternChoice(decision, member.pattern_id, member.task, reason="named in the request")


def _find(name: str, members: Sequence[StoredPattern]) -> StoredPattern | None:
    for member in members:
        if name in (member.pattern_id, member.task) or (name == "generalist" and member.generalist):
            return member
    return None
