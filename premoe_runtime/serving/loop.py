"""The serving loop: one thread owns all serving state, hears messages, decides, and posts commands to the engine.

A turn of the loop reads: receive, fetch what waiting patterns lack, start the next one. Requests, engine reports and
fetched blobs are messages; nothing here blocks but the inbox.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from premoe_runtime.engines.base import (
    Cancel,
    Check,
    Checked,
    Ended,
    Engine,
    Loaded,
    Published,
    StepReport,
    TokenEvent,
)
from premoe_runtime.formats.errors import PremoeError, Unavailable
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.serving.admission import Admission
from premoe_runtime.serving.fetches import Delivered, Fetches, FetchOver
from premoe_runtime.serving.groups import GroupTable
from premoe_runtime.serving.inbox import Heard, Inbox
from premoe_runtime.serving.messages import (
    CancelRequest,
    CheckBytes,
    Close,
    Drain,
    Generate,
    LoadPattern,
    Look,
    PreloadPattern,
    UnloadPattern,
)
from premoe_runtime.serving.open_requests import OpenRequests
from premoe_runtime.serving.patterns import Patterns
from premoe_runtime.serving.pins import Pins
from premoe_runtime.serving.reports import Residency, SwapReport
from premoe_runtime.serving.requests import KeptPattern, OpenRequest

logger = logging.getLogger(__name__)


class ServingLoop:
    """Owns requests (``OpenRequests``), patterns and the swap (``Patterns``), pins, the ledger and the host tier.

    ``admission`` has let in every request that comes, and is told what runs.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        fetches: Fetches,
        inbox: Inbox,
        admission: Admission,
        *,
        max_rows: int,
        weights_id: str,
        blob_bytes: int,
        quantum: int,
        copy_rate: float | None,
    ) -> None:
        self._engine, self._ledger, self._fetches, self._inbox = engine, ledger, fetches, inbox
        self._admission, self._blob_bytes = admission, blob_bytes
        self._requests = OpenRequests(engine, weights_id)
        self._groups = GroupTable(max_rows)
        self._pins = Pins(fetches)
        self._patterns = Patterns(
            engine,
            ledger,
            fetches,
            self._requests,
            self._groups,
            blob_bytes=blob_bytes,
            quantum=quantum,
            copy_rate=copy_rate,
        )
        self._drains: list[Future[None]] = []
        self._checks: deque[Future[None]] = deque()
        self._closing = False

    @property
    def unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    @property
    def last_step(self) -> StepReport:
        """The engine's newest report. Any thread."""
        return self._requests.last

    def run(self) -> BaseException | None:
        """Serve until closed. Whatever ends it ends every request first; returns why, unless it was closed."""
        failure: BaseException | None = None
        try:
            while not self._closing:
                self._receive()
                self.decide(time.monotonic())
        except BaseException as error:
            failure = error
            logger.critical("serving ends: %s", error, exc_info=not isinstance(error, EngineEnded))
        self._end_everything(failure)
        return failure

    def decide(self, now: float) -> None:
        """What follows from all that was heard. ``now``: monotonic seconds."""
        for request in self._requests.take_failed_receivers():
            self._cancel(request)
        self._patterns.fetch_what_is_lacking(now)
        self._pins.fetch_what_is_lacking(now)
        self._patterns.start_next()
        if not self._requests:
            for done in self._drains:
                done.set_result(None)
            self._drains = []

    def _receive(self) -> None:
        """One message at least, or a retry that is due; then all that are there."""
        heard = False
        for message in self._inbox.heard(self._until_retry()):
            heard = True
            self.note(message)
            if self._closing:
                return
        if not heard:
            self._patterns.note_changed()

    def _until_retry(self) -> float | None:
        due = [need.retry_at for need in self._patterns.needs() + self._pins.needs() if need.retry_at]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def note(self, message: Heard) -> None:
        """Take one message in."""
        match message:
            case StepReport():
                self._note_step(message)
            case Generate(request):
                self._generate(request)
            case CancelRequest(request):
                self._cancel(request)
            case Delivered():
                if not self._patterns.note_delivered(message):
                    self._pins.note_delivered(message)
            case FetchOver():
                self._note_fetch(message)
            case Loaded():
                self._patterns.note_copied(message)
            case Published(at_ns):
                self._patterns.note_published(at_ns)
            case LoadPattern(pattern, done):
                self._load(pattern, done)
            case PreloadPattern(pattern, preloaded):
                self._preload(pattern, preloaded)
            case UnloadPattern(pattern_id):
                self._pins.remove(pattern_id)
            case Drain(drained):
                self._admission.draining = True
                self._drains.append(drained)
            case Look(looked):
                looked.set_result((self._residency(), self._patterns.stats.copied()))
            case CheckBytes(checked):
                self._checks.append(checked)
                self._engine.post(Check())
            case Checked(error):
                self._note_checked(error)
            case Ended(error):
                raise EngineEnded(error)
            case Close():
                self._closing = True

    # Requests.

    def _generate(self, request: OpenRequest) -> None:
        try:
            self._admission.check_open()
            group = self._groups.find(request.pattern)
            self._requests.add(group, request)
        except PremoeError as error:
            request.end(TokenEvent(error=error))
            return
        self._patterns.enter(group)

    def _cancel(self, request: OpenRequest) -> None:
        if request.submitted:
            self._engine.post(Cancel(frozenset({request.id})))
        elif not request.ended:
            self._free(request, TokenEvent(finish="cancelled"))

    def _note_step(self, report: StepReport) -> None:
        self._requests.last = report
        self._admission.running = report.running
        for request_id in report.compiled:
            if (compiled := self._requests.get(request_id)) is not None:
                compiled.compiling = False
        for request_id, event in report.events:
            request = self._requests.get(request_id)
            if request is None:
                continue
            if not event.last:
                self._requests.deliver(request, event)
            elif request.error is None:
                self._free(request, event)
            else:
                self._free(request, replace(event, finish=None, error=request.error))

    def _free(self, request: OpenRequest, event: TokenEvent) -> None:
        group = self._groups.holder(request)
        self._requests.free(request, group, event)
        if group is not None:
            self._patterns.leave(group)

    # Patterns ahead of requests.

    def _load(self, pattern: KeptPattern, done: Future[SwapReport]) -> None:
        try:
            self._admission.check_open()
            group = self._groups.find(pattern)
            self._pins.add(pattern)
        except PremoeError as error:
            done.set_exception(error)
            return
        swapped: Future[SwapReport] = Future()
        swapped.add_done_callback(lambda future: self._pins.complete(pattern, future, done))
        group.loads.append(swapped)
        self._patterns.enter(group)

    def _preload(self, pattern: KeptPattern, done: Future[SwapReport | None]) -> None:
        try:
            self._admission.check_open()
            if not self._patterns.has_room_beside_running(pattern):
                done.set_result(None)
                return
            group = self._groups.find(pattern)
        except PremoeError as error:
            done.set_exception(error)
            return
        group.loads.append(done)  # type: ignore[arg-type]  # it only ever gets a report
        self._patterns.enter(group)

    def _note_fetch(self, message: FetchOver) -> None:
        self._patterns.note_changed()
        error = self._fetches.over(message, time.monotonic())
        if error is not None:
            self._patterns.note_fetch_failed(message, error)
            self._pins.note_fetch_failed(message, error)

    # Questions, and the end.

    def _residency(self) -> Residency:
        return Residency(
            generation=self._ledger.generation,
            slots=tuple(tuple(row) for row in self._ledger.table),
            device_bytes=sum(self._ledger.slots) * self._blob_bytes,
            host_bytes=self._fetches.host.arena.num_bytes,
            running=self._admission.running,
            waiting=self._admission.waiting,
            running_patterns=self._patterns.running_names(),
            loaded_patterns=self._pins.names(),
        )

    def _note_checked(self, error: Exception | None) -> None:
        done = self._checks.popleft()
        try:
            if error is not None:
                raise error
            self._fetches.host.check_integrity()
        except Exception as found:
            done.set_exception(found)
        else:
            done.set_result(None)

    def _end_everything(self, failure: BaseException | None) -> None:
        """Every request and every waiting action ends; nobody is left without an answer."""
        self._fetches.stop()
        self._admission.draining = True
        stopping = Unavailable("the worker is stopping; use another one", reason="STOPPING")
        error = stopping if failure is None else Unavailable(f"serving ended: {failure}", reason="ENGINE_ENDED")
        waiting: list[Future[Any]] = [*self._patterns.unanswered(), *self._pins.unanswered(), *self._checks]
        for done in waiting:
            done.set_exception(error)
        cancelled = TokenEvent(finish="cancelled")
        self._requests.free_all(cancelled if failure is None else TokenEvent(error=error))
        for drained in self._drains:
            drained.set_result(None)
        self._inbox.close(error)


class EngineEnded(Exception):
    """The engine has ended, for this reason."""

    def __init__(self, reason: BaseException | None) -> None:
        super().__init__(f"{type(reason).__name__}: {reason}" if reason else "the engine was closed")
        self.reason = reason
