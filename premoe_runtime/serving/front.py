"""The front of the serving loop: methods for other threads, each a message to it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from premoe_runtime.engines.base import Engine, StepReport, TokenEvent
from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.residency.fetch import Fetcher
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import HostTier
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.serving.admission import Admission, Place
from premoe_runtime.serving.fetches import RETRY_SECONDS, Fetches
from premoe_runtime.serving.inbox import Inbox
from premoe_runtime.serving.loop import EngineEnded, ServingLoop
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

    def __init__(self, inbox: Inbox, request: OpenRequest) -> None:
        self._inbox, self._request = inbox, request

    def cancel(self) -> None:
        """Stop it wherever it is: queued, in mid-swap or running. Its last event says ``cancelled``. Idempotent."""
        if not self._request.ended:
            self._inbox.post(CancelRequest(self._request))


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
        self._engine = engine
        self.admission = Admission(max_waiting)
        self._slots, self._exists = shape.slots, shape.manifest.exists
        self._inbox = Inbox()
        fetcher = Fetcher(source, shape, arena)
        self._loop = ServingLoop(
            engine,
            Ledger(shape.slots, shape.manifest.layer_experts, ranks=shape.ranks),
            Fetches(HostTier(arena), fetcher, self._inbox.post, retry_seconds),
            self._inbox,
            self.admission,
            max_rows=shape.max_rows,
            weights_id=shape.manifest.weights_id,
            blob_bytes=shape.blob_bytes,
            quantum=quantum,
            copy_rate=copy_rate,
        )
        self.ended: Future[BaseException | None] = Future()
        self._thread = threading.Thread(target=self._run, name="premoe-serving", daemon=True)
        engine.start(self._inbox.post)
        self._thread.start()

    def generate(
        self,
        request: Request,
        on_started: Callable[[SwapReport], None],
        on_event: Callable[[TokenEvent], None],
        place: Place | None = None,
    ) -> Handle:
        """Queue a request. ``on_started`` is called once its experts are published, before any event.

        ``place``: of a caller who was let in before; it is left at the request's end. Callbacks come from the loop's
        thread and must not block. Prompt and sampling were checked by whoever took the request in (``Engine.limits``).
        Raises what ``Admission.enter`` raises, InvalidInput (pattern) and Conflict (full model without slots for it);
        what only the loop can know (id in use, too many patterns), and what the engine refuses, comes as the only
        event's error.
        """
        place = place or self.admission.enter()
        try:
            self._check_pattern(request.pattern)
        except BaseException:
            place.leave()
            raise
        opened = OpenRequest(request, on_started, on_event, contextvars.copy_context(), place)
        self._inbox.post(Generate(opened))
        return Handle(self._inbox, opened)

    def load_pattern(self, pattern: KeptPattern) -> SwapReport:
        """Make a pattern resident ahead of requests and pin its blobs in host memory; waits for its turn. Idempotent.

        Raises what ``generate`` raises for a pattern, Exhausted when the host tier is too small, and what fetching
        raises; the pin is then off again.
        """
        self._check_pattern(pattern)
        return self._ask(lambda done: LoadPattern(pattern, done))

    def preload(self, pattern: KeptPattern) -> SwapReport | None:
        """Make a pattern resident while nobody needs the room: ``None`` when somebody does, else what it took.

        It comes in beside what runs; a request never waits for it to be asked for. A pattern that is resident already
        counts as used just now, so that others give way first. Raises what ``load_pattern`` raises, but for the pin.
        """
        self._check_pattern(pattern)
        return self._ask(lambda done: PreloadPattern(pattern, done))

    def unload_pattern(self, pattern_id: str) -> None:
        """Take the pin off again; its blobs then go when room is needed. Does nothing for a pattern without a pin."""
        self._inbox.post(UnloadPattern(pattern_id))

    def drain(self, timeout: float) -> int:
        """Refuse new requests, wait up to ``timeout`` seconds for the others; how many were left then. Idempotent."""
        done: Future[None] = Future()
        self._inbox.post(Drain(done))
        try:
            done.result(timeout)
        except TimeoutError:
            return self._loop.unfinished
        return 0

    def residency(self) -> Residency:
        """Raises Unavailable once serving has ended."""
        return self.look()[0]

    def stats(self) -> ServingStats:
        """Raises Unavailable once serving has ended."""
        return self.look()[1]

    def look(self, timeout: float = _ANSWER_SECONDS) -> tuple[Residency, ServingStats]:
        """Both of one moment. Raises Unavailable once serving has ended, TimeoutError without an answer in time."""
        return self._ask(Look, timeout)

    @property
    def last_step(self) -> StepReport:
        """The engine's newest report, asked of nobody: also there while the loop is busy, and after its end."""
        return self._loop.last_step

    def check_integrity(self) -> None:
        """Check every resident byte between two steps. Takes a while. Raises CorruptData."""
        self._ask(CheckBytes)

    def close(self) -> None:
        """Cancel everything and close the engine; bounded in time. Any number of times."""
        self._inbox.post(Close())
        self._thread.join(_CLOSE_SECONDS)

    def _check_pattern(self, pattern: KeptPattern) -> None:
        pattern.check(self._exists, self._slots)

    def _ask(self, message: Callable[[Future[T]], Message], timeout: float | None = None) -> T:
        done: Future[T] = Future()
        self._inbox.post(message(done))
        return done.result(timeout)

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            failure = self._loop.run()
        finally:
            self._engine.close()
            self.ended.set_result(failure.reason if isinstance(failure, EngineEnded) else failure)
            self._inbox.close(Unavailable("the worker has stopped serving; use another one", reason="DRAINING"))
