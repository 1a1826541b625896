"""One fetch under way: what is still to be read, by whom next, and how it ends. Its owner holds the lock."""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from premoe_dataplane.breaker import Place, place_of
from premoe_dataplane.delivery import Delivery
from premoe_dataplane.pending import Ask, Pending
from premoe_dataplane.plan import Source, Tier

JOB_BYTES = 32 << 20
"""What a reader takes at once: long enough for a window of requests, short enough to come back to what is urgent."""
JOBS = 2
"""Of one fetch at once, so that a slow source of one does not take the readers of all."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Pieces to be read from one place, in one call."""

    swap: Swap
    place: Place
    asks: tuple[Ask, ...]

    @property
    def tier(self) -> Tier:
        """Where the plan says that the first of it lies."""
        plan = self.asks[0].pending.plan
        assert plan is not None
        return plan.sources[self.asks[0].source].tier


@dataclass(eq=False, slots=True)
class Swap:
    """``urgent()``: whether somebody waits for it now. ``served``: jobs it has had, which is whose turn is next."""

    delivery: Delivery
    urgent: Callable[[], bool]
    context: contextvars.Context
    resting: Callable[[Source], bool]
    stopped: Callable[[], bool]
    """Asked by its caller, and by readers after each blob."""
    stop: threading.Event = field(default_factory=threading.Event)
    running: Counter[Place] = field(default_factory=Counter)
    served: int = 0
    fault: BaseException | None = None
    """What the receiver raised; nothing else is read."""
    error: Exception | None = None
    """Of the source that failed last."""
    expired: bool = False
    """A source says that the plan is old: what is missing needs another one."""
    dead: set[Place] = field(default_factory=set)
    """Places that brought nothing at all when they were asked for this plan: not again."""
    _open: dict[int, Pending] = field(init=False)
    """Blobs of which something may be wanted, by their order."""

    _order: dict[Pending, int] = field(init=False)

    def __post_init__(self) -> None:
        self._order = {pending: number for number, pending in enumerate(self.delivery.left)}
        self._open = {number: pending for pending, number in self._order.items()}

    @property
    def ended(self) -> bool:
        """Whether nothing is under way, and nothing is left to ask."""
        if self.running.total():
            return False
        job = self._next()
        for ask in job.asks if job is not None else ():
            ask.pending.unask(ask)
        return job is None

    def take(self) -> Job | None:
        """The next job; its pieces count as asked. Prefers a place that none of its readers is at."""
        job = self._next() if self.running.total() < JOBS else None
        if job is not None:
            self.running[job.place] += 1
            self.served += 1
        return job

    def over(self, job: Job) -> list[Ask]:
        """A job has ended. Returns what of it is not in place, which is wanted again from elsewhere."""
        self.running[job.place] -= 1
        self.running += Counter()  # drops zeros
        lacking = []
        for ask in job.asks:
            if left := ask.pending.give_back(ask):
                lacking.append(Ask(ask.pending, ask.source, tuple(left)))
            if not ask.pending.whole:
                self._open[self._order[ask.pending]] = ask.pending
        if lacking:
            self._open = dict(sorted(self._open.items()))
        return lacking

    def _next(self) -> Job | None:
        if self.stop.is_set() or self.expired:
            return None
        return self._collect(avoid=set(self.running)) or self._collect(avoid=set())

    def _collect(self, avoid: set[Place]) -> Job | None:
        place: Place | None = None
        asks: list[Ask] = []
        size = 0

        def dead(source: Source) -> bool:
            return place_of(source) in self.dead

        for number, pending in list(self._open.items()):
            ask = pending.ask(resting=self.resting, dead=dead)
            if ask is None:
                del self._open[number]
                continue
            assert pending.plan is not None
            found = place_of(pending.plan.sources[ask.source])
            if found in avoid or (place is not None and found != place):
                pending.unask(ask)
                continue
            place = found
            asks.append(ask)
            size += pending.num_bytes
            if size >= JOB_BYTES:
                break
        return Job(self, place, tuple(asks)) if place is not None else None
