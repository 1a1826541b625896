"""Brings blobs by the best way that works: piece by piece, each checked in its place, sources in the plan's order."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import blake3
from crc32c import crc32c
from premoe_servicekit.telemetry import tracer

from premoe_dataplane.breaker import Breakers, Place, place_of
from premoe_dataplane.counts import Counts
from premoe_dataplane.delivery import Delivery
from premoe_dataplane.pace import Pace
from premoe_dataplane.pending import Ask
from premoe_dataplane.plan import SCHEMES, Scheme, Source, SwapPlan
from premoe_dataplane.readers import Readers
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.swap import Job, Swap
from premoe_dataplane.transports.base import Part, Transport
from premoe_dataplane.transports.http import PLAN_EXPIRED
from premoe_runtime.formats.errors import CorruptData, PremoeError, Unavailable
from premoe_runtime.formats.pieces import piece

POLL_S = 0.1
"""How soon it is seen that a fetch is no longer wanted, and that a reader waits for a slow source."""
WRONG = "BYTES_WRONG"
"""Reason of CorruptData: all sources were asked, and one of them at least sent wrong bytes."""

log = logging.getLogger(__name__)


class Fetcher:
    """Several fetches at once over two reading threads. ``trusted``: whose bytes nobody on the way can have changed;
    ``background_rate``: most bytes a second of fetches that nobody waits for.

    A piece is right when its crc32c is the plan's, and a blob when all its pieces are right and came from trusted
    sources; else its blake3 decides. What comes wrong is counted, told in the log, and asked of the next source.
    """

    def __init__(
        self,
        transports: Iterable[Transport],
        *,
        trusted: Callable[[Source], bool] = lambda source: False,
        breakers: Breakers | None = None,
        background_rate: float | None = None,
    ) -> None:
        self._transports = {transport.scheme: transport for transport in transports}
        self._trusted = trusted
        self.breakers = breakers or Breakers()
        self.counts = Counts()
        self._pace = Pace(background_rate)
        self._changed = threading.Condition()
        self._swaps: list[Swap] = []
        self._readers = Readers(self._changed, self._take)

    @property
    def schemes(self) -> list[Scheme]:
        """What can be read."""
        return [scheme for scheme in SCHEMES if scheme in self._transports]

    def fetch(
        self,
        plan: SwapPlan,
        delivery: Delivery,
        stopped: Callable[[], bool],
        *,
        urgent: Callable[[], bool] = lambda: True,
    ) -> None:
        """Bring all that is missing of ``delivery``. What is not ``urgent()`` is read when nothing else is to
        be read, and at the background's rate.

        Raises Stopped within a second of ``stopped()``, what the receiver raises, and when every source of a blob was
        asked the error of the one that failed last; CorruptData (BYTES_WRONG) if it sent wrong bytes. No memory is
        written and nobody told after that. Pieces in place stay so for the next plan.
        """
        delivery.renew(plan)
        swap = Swap(delivery, urgent, contextvars.copy_context(), self._resting, stopped)
        with self._changed:
            self._swaps.append(swap)
        try:
            self._wait(swap)
        except BaseException:
            swap.stop.set()
            self._wait(swap)  # whose memory it is may be gone after this
            raise
        finally:
            with self._changed:
                self._swaps.remove(swap)
        if swap.fault is not None:
            raise swap.fault
        if not delivery.left:
            return
        if swap.stop.is_set():
            raise Stopped
        raise swap.error or _no_source(delivery)

    def close(self) -> None:
        """Let connections go. Fetches under way are stopped by whoever called them."""
        for transport in self._transports.values():
            transport.close()

    def _wait(self, swap: Swap) -> None:
        """Until nothing of it is under way and nothing is left to ask."""
        while True:
            self._look(swap)
            with self._changed:
                self._readers.wake()
                if swap.ended:
                    return
                self._changed.wait(POLL_S)

    def _look(self, swap: Swap) -> None:
        """Whether it is still wanted. What its caller raises instead of an answer ends it too."""
        try:
            wanted = not swap.stopped()
        except BaseException as error:
            swap.fault, wanted = swap.fault or error, False
        if not wanted:
            swap.stop.set()

    def _resting(self, source: Source) -> bool:
        return self.breakers.resting(place_of(source))

    def _take(self) -> Callable[[], None] | None:
        """The next job: of urgent fetches first, and of those the one that had least."""
        urgent = {swap: swap.urgent() for swap in self._swaps}
        busy = any(urgent[swap] and swap.running.total() for swap in self._swaps)
        for swap in sorted(self._swaps, key=lambda one: (not urgent[one], one.served)):
            if busy and not urgent[swap]:
                return None
            if (job := swap.take()) is not None:
                # Another job of it may run in its context at this moment: a copy is entered.
                return partial(swap.context.copy().run, self._run, job)
        return None

    def _run(self, job: Job) -> None:
        swap, failure = job.swap, None
        try:
            failure = self._read(job)
        except Stopped:
            pass
        except BaseException as error:
            swap.fault = swap.fault or error
            swap.stop.set()
        with self._changed:
            lacking = swap.over(job)
            if not swap.stop.is_set():
                self._note(job, failure, lacking)
            self._changed.notify_all()

    def _read(self, job: Job) -> PremoeError | None:
        """Read, check and hand over. Returns the source's error; raises the receiver's."""
        swap = job.swap
        asks: dict[int, Ask] = {}
        parts = []
        for ask in job.asks:
            plan = ask.pending.plan
            assert plan is not None
            part = Part(plan, plan.sources[ask.source], swap.delivery.room(ask.pending), ask.pieces)
            asks[id(part)] = ask
            parts.append(part)
        tiers: Counter[str] = Counter()

        def landed(part: Part, index: int) -> None:
            self._readers.beat()
            if swap.stop.is_set():
                raise Stopped
            try:
                if self._check_in(swap, asks[id(part)], part, index):
                    tiers[part.source.tier] += piece(index, part.blob.num_bytes).length
            except BaseException as error:
                raise _Receiver(error) from None
            if not swap.urgent():
                length = piece(index, part.blob.num_bytes).length
                self._pace.keep(length, lambda: swap.urgent() or swap.stop.is_set())

        attributes: dict[str, str | int] = {"premoe.fetch.scheme": job.place.scheme, "premoe.fetch.blobs": len(parts)}
        with tracer().start_as_current_span(f"fetch {job.place.scheme}", attributes=attributes) as span:
            try:
                self._transports[job.place.scheme].read(parts, landed, swap.stop.is_set)
                return None
            except _Receiver as error:
                raise error.raised from None
            except PremoeError as error:
                return error
            finally:
                span.set_attribute("premoe.fetch.bytes", sum(tiers.values()))
                for tier, count in sorted(tiers.items()):
                    span.set_attribute(f"premoe.fetch.bytes.{tier}", count)

    def _check_in(self, swap: Swap, ask: Ask, part: Part, index: int) -> bool:
        """Take a piece, and its blob when that was the last one. Returns whether it is right."""
        where, checks, pending = piece(index, part.blob.num_bytes), part.blob.checks, ask.pending
        if checks and crc32c(part.into[where.offset : where.end]) != checks[index]:
            self._wrong(swap, part.source, f"piece {index} of {part.blob.expert}")
            with self._changed:
                pending.failed(index, ask.source)
            self.counts.again(part.source.scheme, 1)
            return False
        self.counts.read(part.source.scheme, part.source.tier, where.length)
        with self._changed:
            pending.right(index, ask.source)
            complete = pending.complete
            sources = pending.sources if complete else []
        if complete:
            if checks and all(map(self._trusted, sources)):
                right = True
            else:
                right = blake3.blake3(part.into).hexdigest() == part.blob.digest
            if right:
                swap.delivery.finish(pending)
                self._look(swap)
            else:
                self._wrong(swap, part.source, str(part.blob.expert))
                with self._changed:
                    pending.wrong()
                return False
        return True

    def _wrong(self, swap: Swap, source: Source, what: str) -> None:
        self.counts.wrong(source.tier)
        text = f"{what} came wrong from {_named(place_of(source))} (tier {source.tier}); run premoe pack verify"
        log.warning("%s", text)
        swap.error = CorruptData(text, reason=WRONG)

    def _note(self, job: Job, failure: PremoeError | None, lacking: list[Ask]) -> None:
        """What a job's end says of its source."""
        swap, place = job.swap, job.place
        pieces = sum(len(ask.pieces) for ask in lacking)
        if pieces:
            self.counts.again(place.scheme, pieces)
        barren = pieces == sum(len(ask.pieces) for ask in job.asks)
        if not barren:
            swap.delivery.refused.discard(place)
        if failure is None:
            self.breakers.worked(place)
        elif failure.reason != PLAN_EXPIRED:
            swap.error = swap.error if swap.expired else failure
            if isinstance(failure, CorruptData):
                self.counts.wrong(job.tier)
            if self.breakers.failed(place):
                log.warning("%s is left alone for a while: %s", _named(place), failure)
        elif place not in swap.delivery.refused:
            swap.delivery.refused.add(place)
            swap.expired, swap.error = True, failure
        if failure is not None and barren:
            swap.dead.add(place)


class _Receiver(Exception):
    """Carries what the receiver raised past a transport, which maps errors of its own."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__()
        self.raised = raised


def _no_source(delivery: Delivery) -> Unavailable:
    expert = delivery.missing[0]
    return Unavailable(
        f"{expert} cannot be read: none of its sources has it, or none is of a kind that is read here",
        reason="NO_SOURCE",
    )


def _named(place: Place) -> str:
    return f"{place.scheme} {place.server}".strip()
