"""State of one submitted sequence; owned by the engine's thread."""

from __future__ import annotations

import time

from premoe_runtime.engines.base import FinishReason, SequenceTimings, Submit, TokenEvent
from premoe_runtime.engines.grammar import Matcher
from premoe_runtime.engines.hf.kv import ParkedKV
from premoe_runtime.engines.hf.text import Detokenizer, StopMatcher, TokenText
from premoe_runtime.engines.sampling import Sampler


class RunningSequence:
    """Tokens, text and place in memory of one sequence. ``computed`` tokens are in its KV."""

    def __init__(
        self,
        request: Submit,
        text: TokenText,
        eos_ids: frozenset[int],
        context: int,
    ) -> None:
        self.request = request
        self.tokens = list(request.token_ids)
        self.computed = 0
        self.row: int | None = None
        self.parked: ParkedKV | None = None
        self.paused = False
        self.matcher: Matcher | None = None
        """Of its grammar, once that is compiled."""
        self.completion_tokens = 0
        self._sampler = Sampler(request.sampling)
        self._detokenizer = Detokenizer(text, request.token_ids)
        self._stop = StopMatcher(request.sampling.stop, text.special)
        self._eos_ids = eos_ids
        self._limit = min(request.sampling.max_tokens, context - len(request.token_ids))
        self._mass = 0.0
        self._mass_tokens = 0
        """Tokens computed at least once: a sequence whose KV was given up computes them again."""
        self._submitted_ns = time.time_ns()
        self._started_ns = 0
        self._first_token_ns = 0

    @property
    def remaining(self) -> int:
        """Tokens that have to be computed before the next one can be chosen; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def can_run(self) -> bool:
        return not self.paused and (self.matcher is not None or not self.request.grammar)

    @property
    def sampler(self) -> Sampler:
        return self._sampler

    def start(self) -> None:
        """A step is about to run it."""
        self._started_ns = self._started_ns or time.time_ns()

    def computed_more(self, tokens: int, mass: float) -> int:
        """``tokens`` more are in the KV; ``mass``: sum of their retained router mass. Returns new prompt tokens."""
        self.computed += tokens
        if self.computed <= self._mass_tokens:
            return 0
        new = self.computed - self._mass_tokens
        self._mass += mass * new / tokens
        self._mass_tokens = self.computed
        return max(0, min(new, len(self.request.token_ids) - (self.computed - new)))

    def accept(self, token: int) -> TokenEvent:
        """Take the chosen token; the event says whether the sequence ends with it."""
        self._first_token_ns = self._first_token_ns or time.time_ns()
        self.tokens.append(token)
        self.completion_tokens += 1
        complete = self.matcher is not None and self.matcher.accept(token)
        if token in self._eos_ids:
            return self._last((token,), self._stop.push(self._detokenizer.flush()), "stop")
        text = self._stop.push(self._detokenizer.push(token), token)
        if self._stop.matched is not None:
            return self._last((token,), text, "stop", flush=False)
        if complete or self.completion_tokens >= self._limit:
            text += self._stop.push(self._detokenizer.flush())
            reason: FinishReason = "stop" if complete or self._stop.matched is not None else "length"
            return self._last((token,), text, reason)
        return TokenEvent((token,), text)

    def cancelled_event(self) -> TokenEvent:
        return self._last((), "", "cancelled", flush=False)

    def failed_event(self, error: Exception) -> TokenEvent:
        return TokenEvent(error=error, retained_mass=self._retained(), timings=self._timings())

    def _last(self, tokens: tuple[int, ...], text: str, reason: FinishReason, *, flush: bool = True) -> TokenEvent:
        if flush:
            text += self._stop.flush()
        return TokenEvent(tokens, text, finish=reason, retained_mass=self._retained(), timings=self._timings())

    def _retained(self) -> float | None:
        return self._mass / self._mass_tokens if self._mass_tokens else None

    def _timings(self) -> SequenceTimings:
        return SequenceTimings(self._submitted_ns, self._started_ns, self._first_token_ns, time.time_ns())
