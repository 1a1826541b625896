"""The sequences of the step loop: who has a KV row, who is parked, and what a step makes of them. One thread."""

from __future__ import annotations

import logging

import torch

from premoe_runtime.engines.base import Submit
from premoe_runtime.engines.choosing import choose
from premoe_runtime.engines.hf.batch import Pending, Share, plan_apart, plan_step
from premoe_runtime.engines.hf.kv import KVPool, ParkedKV
from premoe_runtime.engines.hf.step import Chunk, StepRunner
from premoe_runtime.engines.sequence import RunningSequence
from premoe_runtime.engines.sequences import Sequences
from premoe_runtime.engines.text import Tokenizer, TokenText

logger = logging.getLogger(__name__)


class RowSequence(RunningSequence):
    """With its place in memory: ``row`` of the KV pool, or ``parked`` KV in host memory, or none."""

    row: int | None = None
    parked: ParkedKV | None = None


class RunningSequences(Sequences[RowSequence]):
    """All unfinished sequences. Rows go out by priority and arrival; a paused one keeps its row until another needs it.

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
        super().__init__()
        self._runner, self._pool, self._text, self._eos_ids = runner, pool, TokenText(tokenizer), eos_ids
        self._prefill_tokens = prefill_tokens
        self._parked_room = parked_bytes
        self._short_tokens = short_tokens

    @property
    def kv_used(self) -> float:
        return 1 - self._pool.free / self._pool.rows

    def step(self) -> None:
        """Hand out rows, decode all that can decode and prefill one bounded piece."""
        self._give_rows()
        ready = [s for s in self._in_order() if self._runs(s)]
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

    def _made(self, request: Submit) -> RowSequence:
        return RowSequence(request, self._text, self._eos_ids, self._pool.context, self._short_tokens)

    def _runs(self, sequence: RowSequence) -> bool:
        return sequence.row is not None and sequence.can_run

    def _give_rows(self) -> None:
        for sequence in self._in_order():
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
        for sequence in reversed(self._in_order()):
            if sequence.paused and sequence.row is not None:
                self._park(sequence)
                self._pool.give_back(sequence.row)
                sequence.row = None
                return True
        return False

    def _park(self, sequence: RowSequence) -> None:
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

    def _unpark(self, sequence: RowSequence) -> None:
        if sequence.parked is not None:
            self._parked_room += sequence.parked.num_bytes
            sequence.parked = None

    def _forward(self, batch: list[tuple[RowSequence, Share]]) -> None:
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
            for sequence, choice in zip(sequences, choose(sequences, torch.stack(logits)), strict=True):
                self._take(sequence, choice)

    def _free(self, sequence: RowSequence, *, failed: bool) -> None:
        if sequence.row is not None:
            if failed:
                self._pool.clear(sequence.row)
            self._pool.give_back(sequence.row)
            sequence.row = None
        self._unpark(sequence)


def chunk_of(sequence: RowSequence, share: Share) -> Chunk:
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
