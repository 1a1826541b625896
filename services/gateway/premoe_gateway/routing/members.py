"""The workers of a gateway and what is known of each: its state, what it ran lately, whether it is in doubt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from premoe_servicekit.abilities import Ability

from premoe_gateway.domain import WorkerState
from premoe_gateway.ports import Worker
from premoe_gateway.routing.rank import Candidate, missing_share
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import Exhausted, Forbidden, NotFound, PremoeError, Unavailable

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""Seconds after which a worker that has not said its state yet is sent no request that another one could take."""
SILENCE_S = 20.0
"""Seconds after which a worker that has said nothing is sent nothing at all."""
_REMEMBERED_PATTERNS = 8

Ranking = Sequence[Sequence[int]]
"""Every layer's experts, best first."""


@dataclass(slots=True, eq=False)
class Member:
    """A worker and what we know of it. Requests hold on to it, even after it has left."""

    worker: Worker
    state: WorkerState | None = None
    """What it said last; None while it does not serve."""
    spare: bool = False
    """Whether it is asked only where nobody else is known: it is stopping, which it says while it still answers, or has
    been late with its state for a short while, as a busy worker may be."""
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_PATTERNS))
    """Patterns that it ran lately, newest first."""
    in_flight: int = 0
    """Our sequences there."""
    calls: int = 0
    """Our calls to it of every kind: its connection stays open for them."""
    silent: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has let the time for saying its state go by, until it says it."""
    _held: tuple[frozenset[int], ...] = ()
    """What was resident at the beginning of its generation, as far as we saw."""
    _failed: bool = False
    _full: bool = False
    _refusal: str = ""
    """Why it does not let us in, as it was last logged."""
    _asking: asyncio.Task[None] | None = None
    _asked_at: float = 0.0
    _heard_at: float = 0.0

    def has_weights(self, weights_id: str) -> bool:
        """Whether it serves these weights; empty: any."""
        return self.state is not None and weights_id in ("", self.state.weights_id)

    def knows(self, abilities: frozenset[Ability]) -> bool:
        """Whether it may be asked for them."""
        return self.state is not None and abilities <= self.state.abilities

    @contextmanager
    def called(self) -> Iterator[Worker]:
        self.calls += 1
        try:
            yield self.worker
        finally:
            self.calls -= 1

    @contextmanager
    def running(self, pattern_id: str) -> Iterator[Worker]:
        """A sequence of ours with this pattern (empty: every expert)."""
        if pattern_id in self.recent:
            self.recent.remove(pattern_id)
        if pattern_id:
            self.recent.appendleft(pattern_id)
        self.in_flight += 1
        try:
            with self.called() as worker:
                yield worker
        finally:
            self.in_flight -= 1

    def note(self, error: PremoeError) -> None:
        """A request failed there: until it says its state again, others are asked first."""
        self._failed |= isinstance(error, Unavailable)
        self._full |= isinstance(error, Exhausted)

    def candidate(self, pattern_id: str, ranking: Ranking | None, *, talked: bool = False) -> Candidate:
        """As a request sees it: our own sequences count, which its last words cannot know of."""
        assert self.state is not None, "only members that serve are ranked"
        late = self._asking is not None and time.monotonic() > self._asked_at + PATIENCE_S
        return Candidate(
            self.worker.address,
            max(self.in_flight, self.state.load),
            answers=not (late or self._failed),
            has_room=not self._full,
            talked=talked,
            recency=self.recent.index(pattern_id) if pattern_id in self.recent else None,
            missing=0.0 if ranking is None else missing_share(ranking, self.state.residents, _kept(self.state)),
            others=len(self.recent),
        )

    def ask(self) -> asyncio.Task[None]:
        """The question for its state that is under way, or a new one."""
        if self._asking is None:
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._ask())
        return self._asking

    async def _ask(self) -> None:
        try:
            with self.called() as worker:
                self.state = self._followed(await worker.state())
            self._heard_at = time.monotonic()
            self.spare = self._failed = self._full = False
            self.silent.clear()
            self._refusal = ""
        except PremoeError as error:
            late = error.reason == "DEADLINE_EXCEEDED" and time.monotonic() < self._heard_at + SILENCE_S
            self.spare = self.state is not None and (late or error.reason == "NOT_SERVING")
            if not self.spare:
                self.state = None
            if isinstance(error, Forbidden) and str(error) != self._refusal:
                self._refusal = str(error)
                log.warning("worker %s refuses this gateway: %s", self.worker.address, error)
            if error.reason == "DEADLINE_EXCEEDED":
                self.silent.set()
        finally:
            self._asking = None

    def _followed(self, state: WorkerState) -> WorkerState:
        """The state with what was resident before.

        Within a generation experts only leave, for the swap that is under way: all that were seen were held.
        """
        last = self.state
        before: tuple[frozenset[int], ...] = ()
        if last is None:
            self._held = state.residents
        elif state.generation != last.generation and state.residents != self._held:
            before, self._held = self._held, state.residents
        else:
            before = last.before
            self._held = tuple(map(frozenset.union, self._held, state.residents))
        return replace(state, before=before)


class Members:
    """All of them, by address; use from one event loop."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._members = {worker.address: Member(worker) for worker in workers}
        self._models: set[str] = set()

    def add(self, worker: Worker) -> None:
        self._members[worker.address] = Member(worker)

    def remove(self, address: str) -> Callable[[], int]:
        """Let go of a worker. Returns a function that tells how many of our calls still run there."""
        member = self._members.pop(address)
        return lambda: member.calls

    async def refresh(self) -> None:
        """Ask every worker for its state, all at the same time.

        Whoever is late is waited for only while nobody else serves: its answer counts when it comes.
        """
        asking = {member.ask() for member in self._members.values()}
        while asking:
            patience = PATIENCE_S if self.healthy() else None
            answered, asking = await asyncio.wait(
                asking, timeout=patience, return_when=asyncio.ALL_COMPLETED if patience else asyncio.FIRST_COMPLETED
            )
            for task in answered:
                if not task.cancelled():
                    task.result()
            if patience:
                break
        self._models |= {state.model for state in self.healthy()}

    def healthy(self) -> list[WorkerState]:
        """States of workers that answered last time, by address."""
        return [state for _, state in self.known() if state is not None]

    def known(self) -> list[tuple[str, WorkerState | None]]:
        """Every worker's address and what it said last; None while it does not serve. Any thread."""
        members = sorted(self._members.items())
        return [(address, None if member.spare else member.state) for address, member in members]

    def of(self, model: str) -> list[Member]:
        """Healthy workers of a model, by address; where there are none, those that stop or are late."""
        members = (member for _, member in sorted(self._members.items()))
        found = [member for member in members if member.state is not None and member.state.model == model]
        return [member for member in found if not member.spare] or found

    async def serving(self, model: str) -> list[Member]:
        """Healthy workers of a model, at least one; asks again before it says that there are none.

        A model that was served before is Unavailable: its workers are on their way. One never heard of is NotFound
        while others are served.
        """
        for attempt in range(2):
            members = self.of(model)
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

    async def has_others(self, model: str, failed: Collection[Worker], *, look_again: bool) -> bool:
        """Whether a worker is left that has not failed a request; may look again before it says no."""
        for attempt in range(2):
            if any(member.worker not in failed for member in self.of(model)):
                return True
            if not attempt and look_again:
                await self.refresh()
        return False


def _kept(state: WorkerState) -> tuple[int, ...]:
    """Experts that its budget keeps in every layer, told from how its slots spread."""
    try:
        kept = Budget.parse(state.budget).kept
    except PremoeError:
        return ()
    layers = state.layer_slots or (state.slots,) * len(state.residents)
    return tuple(slots * kept // max(1, state.slots) for slots in layers)
