"""State of one submitted sequence; owned by the engine's thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from premoe_runtime.engines.base import FinishReason, Logprobs, SequenceTimings, Submit, TokenEvent
from premoe_runtime.engines.grammar import Matcher
from premoe_runtime.engines.logprobs import logprobs
from premoe_runtime.engines.sampling import Sampler
from premoe_runtime.engines.text import Detokenizer, StopMatcher, TokenText


class RunningSequence:
    """Tokens and text of one sequence. ``computed`` tokens are in its KV.

    With more than ``short_tokens`` tokens its keys are others: then all are computed again.
    """

    def __init__(
        self,
        request: Submit,
        text: TokenText,
        eos_ids: frozenset[int],
        context: int,
        short_tokens: int | None = None,
    ) -> None:
        self.request = request
        self.tokens = list(request.token_ids)
        self.computed = 0
        self._short_tokens = short_tokens
        self.paused = False
        self.matcher: Matcher | None = None
        """Of its grammar, once that is compiled."""
        self.completion_tokens = 0
        wanted = request.sampling
        # The model's own end tokens are no text, those of the request are made none.
        self._end_ids = frozenset(wanted.stop_token_ids) | (frozenset() if wanted.ignore_eos else eos_ids)
        self._sampler = Sampler(wanted, request.token_ids, self._end_ids)
        self._detokenizer = Detokenizer(text, request.token_ids)
        self._stop = StopMatcher(wanted.stop, text.special)
        self._limit = min(wanted.max_tokens, context - len(request.token_ids))
        self._prompt_logprobs: list[Logprobs] = []
        """Of the prompt's tokens from the second on, as far as they are known and not yet told."""
        self._prompt_known = 1
        self._mass = 0.0
        self._mass_tokens = 0
        """Tokens that ``_mass`` is of."""
        self._known = 0
        """Tokens that were in the KV at least once: a sequence whose KV was given up computes them again."""
        self._submitted_ns = time.time_ns()
        self._started_ns = 0
        self._first_token_ns = 0

    @property
    def longest(self) -> int:
        """Tokens that it can have at its end."""
        return len(self.request.token_ids) + self._limit

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
        """``tokens`` more are in the KV; ``mass``: sum of their retained router mass. Returns new prompt tokens, those
        included that came into the KV without being computed.
        """
        self.computed += tokens
        if self.computed <= self._known:
            return 0
        counted = min(tokens, self.computed - self._known)
        self._mass += mass * counted / tokens
        self._mass_tokens += counted
        before, self._known = self._known, self.computed
        prompt = len(self.request.token_ids)
        return min(self.computed, prompt) - min(before, prompt)

    @property
    def wants_every_logit(self) -> bool:
        """Whether the logits of all tokens that it computes next are needed, not of the last one alone."""
        return self.request.sampling.prompt_logprobs is not None and self._prompt_known < len(self.request.token_ids)

    def note_prompt(self, logits: torch.Tensor) -> None:
        """``logits``: float[N, V] after each of the N tokens that were computed last, before they are counted.

        Raises CorruptData.
        """
        count = self.request.sampling.prompt_logprobs
        assert count is not None, "asked for by wants_every_logit"
        # A sequence whose KV was given up computes tokens again that are known already.
        start = self._prompt_known - self.computed - 1
        tokens = self.request.token_ids[self._prompt_known : self.computed + len(logits) + 1]
        if tokens:
            self._prompt_logprobs += logprobs(logits[start : start + len(tokens)], tokens, [count] * len(tokens))
            self._prompt_known += len(tokens)

    def tell_prompt(self, known: Sequence[Logprobs]) -> None:
        """The log probabilities of its prompt's tokens from the second on, from whoever worked them out."""
        self._prompt_logprobs, self._prompt_known = list(known), len(self.request.token_ids)

    def accept(self, token: int, likelihood: Logprobs | None = None) -> TokenEvent:
        """Take the chosen token; the event says whether the sequence ends with it."""
        event = self._accept(token)
        if likelihood is not None or self._prompt_logprobs:
            said = () if likelihood is None else (likelihood,)
            event = replace(event, logprobs=said, prompt_logprobs=tuple(self._prompt_logprobs))
            self._prompt_logprobs = []
        return event

    def _accept(self, token: int) -> TokenEvent:
        self._first_token_ns = self._first_token_ns or time.time_ns()
        if len(self.tokens) == self._short_tokens:
            self.computed = 0
        self.tokens.append(token)
        self.completion_tokens += 1
        complete = self.matcher is not None and self.matcher.accept(token)
        self._sampler.note(token)
        if token in self._end_ids:
            return self._last((token,), self._stop.push(self._detokenizer.flush()), "stop")
        early = self.completion_tokens <= self.request.sampling.min_tokens
        text = self._stop.push(self._detokenizer.push(token), token, too_early=early)
        if self._stop.matched is not None:
            return self._last((token,), text, "stop", flush=False)
        if complete or self.completion_tokens >= self._limit:
            text += self._stop.push(self._detokenizer.flush(), too_early=early)
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
