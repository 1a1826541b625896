"""The front of the serving loop: methods for other threads, each a message to it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from premoe_runtime.engines.base import Engine, TokenEvent
from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.residency.fetch import Fetcher
from premoe_runtime.residency.host_tier import HostArena, HostTier
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.serving.fetches import RETRY_SECONDS, Fetches
from premoe_runtime.serving.loop import EngineEnded, Heard, ServingLoop, draining, queue_full
from premoe_runtime.serving.messages import (
    CancelRequest,
    CheckBytes,
    Close,
    Drain,
    Generate,
    LoadPattern,
    Look,
    Message,
    PreloadPattern,
    UnloadPattern,
)
from premoe_runtime.serving.reports import Residency, ServingStats, SwapReport
from premoe_runtime.serving.requests import KeptPattern, OpenRequest, Request
from premoe_runtime.serving.turns import DEFAULT_QUANTUM

DEFAULT_MAX_WAITING = 256
_CLOSE_SECONDS = 40.0
_ANSWER_SECONDS = 60.0
"""Bound on answers that the loop gives at once."""
T = TypeVar("T")


class Handle:
    """A request given to the front."""

    def __init__(self, post: Callable[[Message], None], request: OpenRequest) -> None:
        self._post, self._request = post, request

    def cancel(self) -> None:
        """Stop it wherever it is: queued, in mid-swap or running. Its last event says ``cancelled``. Idempotent."""
        if not self._request.ended:
            self._post(CancelRequest(self._request))


class Front:
    """Front of an engine and its experts, whose slots are empty; every method is safe from any thread.

    A pattern whose experts all fit beside the running ones is swapped in while those go on decoding; one that does not
    fit takes turns with them (``turns.next_move``). Blobs are fetched for all waiting patterns at once and copied for
    one at a time. ``copy_rate`` bounds background copies in bytes/s, so that they do not slow down decoding.
    ``retry_seconds``: waits before an unavailable source is asked again. ``ended`` is done once serving has ended, with
    the reason if it was not closed.
    """

    def __init__(
        self,
        engine: Engine,
        shape: SlotShape,
        arena: HostArena,
        source: ExpertSource,
        *,
        quantum: int = DEFAULT_QUANTUM,
        max_waiting: int = DEFAULT_MAX_WAITING,
        copy_rate: float | None = None,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        self._engine, self._max_waiting = engine, max_waiting
        self._slots, self._num_experts = shape.slots, shape.num_experts
        self._inbox: SimpleQueue[Heard] = SimpleQueue()
        fetcher = Fetcher(source, shape, arena)
        self._loop = ServingLoop(
            engine,
            Ledger(shape.slots, shape.num_experts),
            Fetches(HostTier(arena), fetcher, self._inbox.put, retry_seconds),
            self._inbox,
            max_rows=shape.max_rows,
            weights_id=shape.manifest.weights_id,
            blob_bytes=shape.blob_bytes,
            quantum=quantum,
            max_waiting=max_waiting,
            copy_rate=copy_rate,
        )
        self.ended: Future[BaseException | None] = Future()
        self._thread = threading.Thread(target=self._run, name="premoe-serving", daemon=True)
        engine.start(self._inbox.put)
        self._thread.start()

    def admit(self) -> None:
        """Whether a request would find room now, before anything is worked out for it.

        Raises Unavailable (draining, ended) or Exhausted (queue full). ``generate`` decides anew.
        """
        if self._loop.draining:
            raise draining()
        if self._loop.unfinished - self._loop.running >= self._max_waiting:
            raise queue_full(self._max_waiting)

    def generate(
        self,
        request: Request,
        on_started: Callable[[SwapReport], None],
        on_event: Callable[[TokenEvent], None],
    ) -> Handle:
        """Queue a request. ``on_started`` is called once its experts are published, before any event.

        Callbacks come from the loop's thread and must not block. Prompt and sampling were checked by whoever took the
        request in (``Engine.limits``). Raises InvalidInput (pattern), Conflict (full model without slots for it),
        Exhausted (queue full) and Unavailable (draining); what only the loop can know (id in use, queue full in that
        moment, too many patterns), and what the engine refuses, comes as the only event's error.
        """
        self.admit()
        self._check_pattern(request.pattern)
        opened = OpenRequest(request, on_started, on_event, contextvars.copy_context())
        self._post(Generate(opened))
        return Handle(self._post, opened)

    def load_pattern(self, pattern: KeptPattern) -> SwapReport:
        """Make a pattern resident ahead of requests and pin its blobs in host memory; waits for its turn. Idempotent.

        Raises what ``generate`` raises for a pattern, Exhausted when the host tier is too small, and what fetching
        raises; the pin is then off again.
        """
        self._check_pattern(pattern)
        done: Future[SwapReport] = Future()
        return self._ask(LoadPattern(pattern, done), done, timeout=None)

    def preload(self, pattern: KeptPattern) -> SwapReport | None:
        """Make a pattern resident while nobody needs the room: ``None`` when somebody does, else what it took.

        It comes in beside what runs; a request never waits for it to be asked for. A pattern that is resident already
        counts as used just now, so that others give way first. Raises what ``load_pattern`` raises, but for the pin.
        """
        self._check_pattern(pattern)
        done: Future[SwapReport | None] = Future()
        return self._ask(PreloadPattern(pattern, done), done, timeout=None)

    def unload_pattern(self, pattern_id: str) -> None:
        """Take the pin off again; its blobs then go when room is needed. Does nothing for a pattern without a pin."""
        self._post(UnloadPattern(pattern_id))

    def drain(self, timeout: float) -> int:
        """Refuse new requests, wait up to ``timeout`` seconds for the others; how many were left then. Idempotent."""
        done: Future[None] = Future()
        self._post(Drain(done))
        try:
            done.result(timeout)
        except TimeoutError:
            return self._loop.unfinished
        return 0

    def residency(self) -> Residency:
        """Raises Unavailable once serving has ended."""
        return self._look()[0]

    def stats(self) -> ServingStats:
        """Raises Unavailable once serving has ended."""
        return self._look()[1]

    def check_integrity(self) -> None:
        """Check every resident byte between two steps. Takes a while. Raises CorruptData."""
        done: Future[None] = Future()
        self._ask(CheckBytes(done), done, timeout=None)

    def close(self) -> None:
        """Cancel everything and close the engine; bounded in time. Any number of times."""
        self._inbox.put(Close())
        self._thread.join(_CLOSE_SECONDS)

    def _check_pattern(self, pattern: KeptPattern) -> None:
        pattern.check(num_layers=len(self._slots), num_experts=self._num_experts, slots=self._slots)

    def _look(self) -> tuple[Residency, ServingStats]:
        done: Future[tuple[Residency, ServingStats]] = Future()
        return self._ask(Look(done), done, timeout=_ANSWER_SECONDS)

    def _ask(self, message: Message, done: Future[T], *, timeout: float | None) -> T:
        self._post(message)
        return done.result(timeout)

    def _post(self, message: Message) -> None:
        if self.ended.done() and not isinstance(message, CancelRequest | UnloadPattern | Drain):
            raise stopped()
        self._inbox.put(message)
        if self.ended.done():
            # It may have ended between the two lines above: nobody may be left waiting.
            self._loop.refuse_the_rest(stopped())

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            failure = self._loop.run()
        finally:
            self._engine.close()
            self.ended.set_result(failure.reason if isinstance(failure, EngineEnded) else failure)
            self._loop.refuse_the_rest(stopped())


def stopped() -> Unavailable:
    return Unavailable("the worker has stopped serving; use another one", reason="DRAINING")
