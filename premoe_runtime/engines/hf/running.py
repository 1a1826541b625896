"""The sequences of the step loop: who has a KV row, who is parked, and what a step makes of them. One thread."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from premoe_runtime.engines.base import Logprobs, StepReport, Submit, TokenEvent
from premoe_runtime.engines.grammar import Matcher, constrain
from premoe_runtime.engines.hf.batch import Pending, Share, plan_apart, plan_step
from premoe_runtime.engines.hf.kv import KVPool
from premoe_runtime.engines.hf.sequence import RunningSequence
from premoe_runtime.engines.hf.step import Chunk, StepRunner
from premoe_runtime.engines.hf.text import Tokenizer, TokenText
from premoe_runtime.engines.logprobs import logprobs
from premoe_runtime.engines.sampling import choose_batch
from premoe_runtime.formats.errors import Conflict, PremoeError

logger = logging.getLogger(__name__)


class RunningSequences:
    """All unfinished sequences. Rows go out in order of arrival; a paused one keeps its row until another needs it.

    Then its KV is parked in host memory while ``parked_bytes`` has room for it, and computed again otherwise.
    """

    def __init__(
        self,
        runner: StepRunner,
        pool: KVPool,
        tokenizer: Tokenizer,
        eos_ids: frozenset[int],
        *,
        prefill_tokens: int,
        parked_bytes: int,
        short_tokens: int | None = None,
    ) -> None:
        self._runner, self._pool, self._text, self._eos_ids = runner, pool, TokenText(tokenizer), eos_ids
        self._prefill_tokens = prefill_tokens
        self._parked_room = parked_bytes
        self._short_tokens = short_tokens
        self._sequences: dict[str, RunningSequence] = {}
        self._events: list[tuple[str, TokenEvent]] = []
        self._compiled: list[str] = []
        self._steps = self._prompt_tokens = self._completion_tokens = 0

    @property
    def can_step(self) -> bool:
        return any(sequence.can_run for sequence in self._sequences.values())

    def add(self, request: Submit) -> None:
        """Raises Conflict for an id in use. One with a grammar runs once ``compiled`` has brought it."""
        if request.request_id in self._sequences:
            raise Conflict(f"request id {request.request_id!r} is in use", reason="REQUEST_ID_IN_USE")
        self._sequences[request.request_id] = RunningSequence(
            request, self._text, self._eos_ids, self._pool.context, self._short_tokens
        )

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

    def step(self) -> None:
        """Hand out rows, decode all that can decode and prefill one bounded piece."""
        self._give_rows()
        ready = [s for s in self._sequences.values() if s.can_run and s.row is not None]
        if not ready:
            return
        pending = [Pending(i, s.remaining, s.computed > 0) for i, s in enumerate(ready)]
        if (state := self._pool.state) is not None:
            forwards = plan_apart(pending, self._prefill_tokens, whole=state.whole_prompts)
        else:
            forwards = plan_step(pending, self._prefill_tokens).forwards
        self._steps += 1
        for shares in forwards:
            batch = sorted(((ready[share.index], share) for share in shares), key=lambda pair: pair[0].row or 0)
            self._forward(batch)

    def report(self) -> StepReport:
        """What happened since the last report."""
        events, self._events = tuple(self._events), []
        compiled, self._compiled = tuple(self._compiled), []
        running = sum(s.row is not None and s.can_run for s in self._sequences.values())
        return StepReport(
            steps=self._steps,
            running=running,
            waiting=len(self._sequences) - running,
            kv_used=1 - self._pool.free / self._pool.rows,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            events=events,
            compiled=compiled,
        )

    def _of(self, request_ids: frozenset[str]) -> list[RunningSequence]:
        return [self._sequences[request_id] for request_id in request_ids & self._sequences.keys()]

    def _give_rows(self) -> None:
        for sequence in self._sequences.values():
            if not sequence.can_run or sequence.row is not None:
                continue
            if not self._pool.free and not self._free_one():
                return
            sequence.row = self._pool.take()
            if sequence.parked is not None:
                self._pool.unpark(sequence.row, sequence.parked)
                self._unpark(sequence)

    def _free_one(self) -> bool:
        """Take the row of the paused sequence that came last."""
        for sequence in reversed(self._sequences.values()):
            if sequence.paused and sequence.row is not None:
                self._park(sequence)
                self._pool.give_back(sequence.row)
                sequence.row = None
                return True
        return False

    def _park(self, sequence: RunningSequence) -> None:
        assert sequence.row is not None, "only a sequence with a row has KV to park"
        num_bytes = self._pool.row_bytes(sequence.computed)
        if num_bytes > self._parked_room:
            sequence.computed = 0
            return
        try:
            sequence.parked = self._pool.park(sequence.row, sequence.computed)
        except (MemoryError, torch.OutOfMemoryError):
            logger.warning("no host memory to park %d bytes of KV; it will be computed again", num_bytes)
            sequence.computed = 0
            return
        self._parked_room -= num_bytes

    def _unpark(self, sequence: RunningSequence) -> None:
        if sequence.parked is not None:
            self._parked_room += sequence.parked.num_bytes
            sequence.parked = None

    def _forward(self, batch: list[tuple[RunningSequence, Share]]) -> None:
        for sequence, _ in batch:
            sequence.start()
        try:
            results = self._runner.run([chunk_of(sequence, share) for sequence, share in batch])
        except torch.AcceleratorError:
            # The device is lost: whatever is tried next fails too.
            raise
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0][0], error)
                return
            # One bad sequence must not take its neighbours along: a forward can be repeated, so each runs alone.
            logger.warning("a step over %d sequences failed; running them one by one", len(batch), exc_info=True)
            for item in batch:
                self._forward([item])
            return
        finished = []
        for (sequence, share), result in zip(batch, results, strict=True):
            try:
                if result.every is not None:
                    sequence.note_prompt(result.every)
            except Exception as error:
                self._fail(sequence, error)
                continue
            self._prompt_tokens += sequence.computed_more(share.count, result.mass)
            if not sequence.remaining:
                finished.append((sequence, result.logits))
        if finished:
            sequences, logits = zip(*finished, strict=True)
            self._choose(sequences, torch.stack(logits))

    def _choose(self, sequences: tuple[RunningSequence, ...], logits: torch.Tensor) -> None:
        """The next token of each; ``logits``: float[B, V], written to."""
        likelihoods: dict[int, Logprobs] = {}
        try:
            # Log probabilities are the model's own, and grammars write into its logits.
            told = any(s.matcher is not None and s.request.sampling.logprobs is not None for s in sequences)
            raw = logits.clone() if told else logits
            failed = constrain(logits, [sequence.matcher for sequence in sequences])
            chosen = choose_batch([sequence.sampler for sequence in sequences], logits)
            for index, error in failed.items():
                chosen[index] = error
            likelihoods = _likelihoods(sequences, chosen, raw)
        except Exception as error:
            chosen = [error] * len(sequences)
        for index, (sequence, token) in enumerate(zip(sequences, chosen, strict=True)):
            try:
                if isinstance(token, Exception):
                    raise token
                event = sequence.accept(token, likelihoods.get(index))
            except Exception as error:
                self._fail(sequence, error)
                continue
            self._completion_tokens += 1
            if event.last:
                self._end(sequence, event)
            else:
                self._events.append((sequence.request.request_id, event))

    def _fail(self, sequence: RunningSequence, error: Exception) -> None:
        if not isinstance(error, PremoeError):
            logger.error("sequence %s failed", sequence.request.request_id, exc_info=error)
        if sequence.row is not None:
            self._pool.clear(sequence.row)
        self._end(sequence, sequence.failed_event(error))

    def _end(self, sequence: RunningSequence, event: TokenEvent) -> None:
        """Free everything the sequence holds."""
        del self._sequences[sequence.request.request_id]
        if sequence.row is not None:
            self._pool.give_back(sequence.row)
            sequence.row = None
        self._unpark(sequence)
        self._events.append((sequence.request.request_id, event))


def chunk_of(sequence: RunningSequence, share: Share) -> Chunk:
    assert sequence.row is not None, "only sequences with a KV row are run"
    start = sequence.computed
    return Chunk(
        row=sequence.row,
        start=start,
        tokens=tuple(sequence.tokens[start : start + share.count]),
        pattern_row=sequence.request.pattern_row,
        active=sequence.request.active,
        every=sequence.wants_every_logit,
        length=len(sequence.tokens),
    )


def _likelihoods(
    sequences: Sequence[RunningSequence], chosen: Sequence[int | Exception], logits: torch.Tensor
) -> dict[int, Logprobs]:
    """Of the chosen tokens, by the sequence's place, where they are asked for; ``logits``: float[B, V]."""
    wanted = [
        (index, token, count)
        for index, (sequence, token) in enumerate(zip(sequences, chosen, strict=True))
        if (count := sequence.request.sampling.logprobs) is not None and not isinstance(token, Exception)
    ]
    if not wanted:
        return {}
    places, tokens, counts = zip(*wanted, strict=True)
    return dict(zip(places, logprobs(logits[list(places)], tokens, counts), strict=True))
