"""The unfinished sequences of an engine: how they come, wait, are told of, and end. One thread."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from premoe_runtime.engines.base import Logprobs, StepReport, Submit, TokenEvent
from premoe_runtime.engines.choosing import Choice
from premoe_runtime.engines.grammar import Matcher
from premoe_runtime.engines.sequence import RunningSequence
from premoe_runtime.formats.errors import Conflict, PremoeError

logger = logging.getLogger(__name__)
S = TypeVar("S", bound=RunningSequence)


class Sequences(ABC, Generic[S]):
    """What they hold of a device, and what a step is, is the engine's own."""

    def __init__(self) -> None:
        self._sequences: dict[str, S] = {}
        self._events: list[tuple[str, TokenEvent]] = []
        self._compiled: list[str] = []
        self._steps = self._prompt_tokens = self._completion_tokens = 0

    @abstractmethod
    def step(self) -> None:
        """Let all that can run make a token, or come nearer to one."""

    @abstractmethod
    def _made(self, request: Submit) -> S:
        """A new sequence. Raises PremoeError for one that can never run."""

    @abstractmethod
    def _free(self, sequence: S, *, failed: bool) -> None:
        """Take back what a sequence holds that has ended."""

    @abstractmethod
    def _runs(self, sequence: S) -> bool:
        """Whether the coming step can run it."""

    @property
    @abstractmethod
    def kv_used(self) -> float:
        """Share of the KV memory that sequences hold, 0 to 1."""

    @property
    def can_step(self) -> bool:
        return any(sequence.can_run for sequence in self._sequences.values())

    def add(self, request: Submit) -> None:
        """Raises Conflict for an id in use. One with a grammar runs once ``compiled`` has brought it."""
        if request.request_id in self._sequences:
            raise Conflict(f"request id {request.request_id!r} is in use", reason="REQUEST_ID_IN_USE")
        self._sequences[request.request_id] = self._made(request)

    def compiled(self, request: Submit, matcher: Matcher | Exception) -> None:
        """The grammar of a sequence, which may have ended meanwhile."""
        if not self.wants(request):
            return
        sequence = self._sequences[request.request_id]
        if isinstance(matcher, Exception):
            self._fail(sequence, matcher)
        else:
            sequence.matcher = matcher
            self._compiled.append(request.request_id)

    def wants(self, request: Submit) -> bool:
        """Whether it is still to be answered. Any thread."""
        sequence = self._sequences.get(request.request_id)
        return sequence is not None and sequence.request is request

    def refuse(self, request_id: str, error: Exception) -> None:
        self._events.append((request_id, TokenEvent(error=error)))

    def cancel(self, request_ids: frozenset[str]) -> None:
        for sequence in self._of(request_ids):
            self._end(sequence, sequence.cancelled_event())

    def set_paused(self, request_ids: frozenset[str], paused: bool) -> None:
        for sequence in self._of(request_ids):
            sequence.paused = paused

    def cancel_all(self) -> None:
        self.cancel(frozenset(self._sequences))

    def report(self) -> StepReport:
        """What happened since the last report."""
        events, self._events = tuple(self._events), []
        compiled, self._compiled = tuple(self._compiled), []
        running = sum(self._runs(sequence) for sequence in self._sequences.values())
        return StepReport(
            steps=self._steps,
            running=running,
            waiting=len(self._sequences) - running,
            kv_used=self.kv_used,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            events=events,
            compiled=compiled,
        )

    def _in_order(self) -> list[S]:
        """By priority, and of one priority in order of arrival."""
        return sorted(self._sequences.values(), key=lambda sequence: sequence.request.priority)

    def _of(self, request_ids: frozenset[str]) -> list[S]:
        return [self._sequences[request_id] for request_id in request_ids & self._sequences.keys()]

    def _take(self, sequence: S, choice: Choice) -> None:
        """A step has brought it to its next token."""
        token, likelihood = choice
        try:
            event = self._accepted(sequence, token, likelihood)
        except Exception as error:
            self._fail(sequence, error)
            return
        self._completion_tokens += 1
        if event.last:
            self._end(sequence, event)
        else:
            self._events.append((sequence.request.request_id, event))

    def _accepted(self, sequence: S, token: int | Exception, likelihood: Logprobs | None) -> TokenEvent:
        if isinstance(token, Exception):
            raise token
        return sequence.accept(token, likelihood)

    def _fail(self, sequence: S, error: Exception) -> None:
        if not isinstance(error, PremoeError):
            logger.error("sequence %s failed", sequence.request.request_id, exc_info=error)
        self._end(sequence, sequence.failed_event(error), failed=True)

    def _end(self, sequence: S, event: TokenEvent, *, failed: bool = False) -> None:
        """Free everything the sequence holds."""
        del self._sequences[sequence.request.request_id]
        self._free(sequence, failed=failed)
        self._events.append((sequence.request.request_id, event))
