"""The transformers engine: modelling code of the model's family under a step loop of ours."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch

from premoe_runtime.engines.base import EngineStats, SequenceRequest, TokenEvent
from premoe_runtime.engines.hf.batch import Pending, Share, plan_step
from premoe_runtime.engines.hf.kv import KVPool
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.engines.hf.sequence import RunningSequence
from premoe_runtime.engines.hf.step import Chunk, StepRunner, kv_shape
from premoe_runtime.engines.sampling import check_sampling, choose_batch
from premoe_runtime.formats.errors import Conflict, InvalidInput, PremoeError, Unavailable

logger = logging.getLogger(__name__)

DEFAULT_MAX_SEQUENCES = 8
DEFAULT_CONTEXT = 4096
DEFAULT_PREFILL_TOKENS = 256


class HfSequence:
    """Handle of a submitted sequence."""

    def __init__(self, engine: HfEngine, sequence: RunningSequence) -> None:
        self._engine = engine
        self._sequence = sequence

    def cancel(self) -> None:
        self._engine.cancel(self._sequence)


class HfEngine:
    """Continuous batching over one slot model; implements ``premoe_runtime.engines.base.Engine``.

    At every boundary it applies actions, drops cancelled sequences and hands free KV rows to waiting ones in order of
    arrival; a step then decodes all that can decode and prefills one bounded piece. A paused sequence keeps its row
    until somebody else needs it; then its KV is parked on the host. KV memory: ``max_sequences`` × ``context`` tokens.
    """

    def __init__(
        self,
        slot_model: SlotModel,
        *,
        max_sequences: int = DEFAULT_MAX_SEQUENCES,
        context: int | None = None,
        prefill_tokens: int = DEFAULT_PREFILL_TOKENS,
    ) -> None:
        config = slot_model.model.config.get_text_config()
        self._context = min(context or DEFAULT_CONTEXT, int(config.max_position_embeddings))
        self._slot_model = slot_model
        self._vocabulary = int(config.vocab_size)
        self._eos_ids = eos_ids(slot_model)
        self._prefill_tokens = prefill_tokens
        self._pool = KVPool(kv_shape(slot_model), rows=max_sequences, context=self._context)
        self._runner = StepRunner(slot_model, self._pool)
        self._wake = threading.Condition()
        self._sequences: dict[str, RunningSequence] = {}
        self._actions: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._closing = False
        self._steps = self._prompt_tokens = self._completion_tokens = 0
        self._thread = threading.Thread(target=self._loop, name="premoe-engine", daemon=True)
        self._thread.start()

    @property
    def context(self) -> int:
        return self._context

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV pool on the device."""
        return self._pool.num_bytes

    @property
    def free_rows(self) -> int:
        return self._pool.free

    def check(self, request: SequenceRequest) -> None:
        """Raise InvalidInput for a request that can never run here."""
        check_sampling(request.sampling)
        tokens = request.token_ids
        if not tokens:
            raise InvalidInput("the prompt is empty; send at least one token", reason="PROMPT_EMPTY")
        if len(tokens) >= self._context:
            raise InvalidInput(
                f"the prompt has {len(tokens)} tokens, but the context holds {self._context}, at least one of them for "
                "the answer; shorten the prompt",
                reason="PROMPT_TOO_LONG",
            )
        if not 0 <= min(tokens) <= max(tokens) < self._vocabulary:
            raise InvalidInput(
                f"the prompt holds token ids outside 0 … {self._vocabulary - 1}", reason="TOKEN_ID_INVALID"
            )
        top_k = self._slot_model.manifest.top_k
        if not 1 <= request.active <= top_k:
            raise InvalidInput(
                f"{request.active} active experts asked for, but the model activates 1 to {top_k}",
                reason="ACTIVE_EXPERTS_INVALID",
            )

    def submit(self, request: SequenceRequest, on_event: Callable[[TokenEvent], None]) -> HfSequence:
        """See the port. Raises InvalidInput, Conflict (id in use) and Unavailable (closed)."""
        self.check(request)
        sequence = RunningSequence(request, on_event, self._slot_model.tokenizer, self._eos_ids, self._context)
        with self._wake:
            self._check_open()
            if request.request_id in self._sequences:
                raise Conflict(f"request id {request.request_id!r} is in use", reason="REQUEST_ID_IN_USE")
            self._sequences[request.request_id] = sequence
            self._wake.notify_all()
        return HfSequence(self, sequence)

    def cancel(self, sequence: RunningSequence) -> None:
        with self._wake:
            sequence.cancelled = True
            self._wake.notify_all()

    def at_boundary(self, action: Callable[[], None]) -> None:
        """See the port. Raises what ``action`` raises, and Unavailable once the engine is closed."""
        if threading.current_thread() is self._thread:
            # Events are delivered between steps: waiting for the next boundary here would wait for ourselves.
            action()
            return
        done: Future[None] = Future()
        with self._wake:
            self._check_open()
            self._actions.append((action, done))
            self._wake.notify_all()
        done.result()

    def pause(self, request_ids: frozenset[str]) -> None:
        self._set_paused(request_ids, True)

    def resume(self, request_ids: frozenset[str]) -> None:
        self._set_paused(request_ids, False)

    def stats(self) -> EngineStats:
        with self._wake:
            running = sum(s.row is not None and not s.paused for s in self._sequences.values())
            return EngineStats(
                running=running,
                waiting=len(self._sequences) - running,
                steps=self._steps,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=self._completion_tokens,
            )

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # The rest runs on the engine's thread, but for the two small helpers that take the lock.

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("the engine is closed", reason="ENGINE_CLOSED")

    def _set_paused(self, request_ids: frozenset[str], paused: bool) -> None:
        with self._wake:
            for request_id in request_ids & self._sequences.keys():
                self._sequences[request_id].paused = paused
            self._wake.notify_all()

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(self._has_work)
                actions, self._actions = self._actions, deque()
                sequences = list(self._sequences.values())
                closing = self._closing
            if closing:
                break
            for action, done in actions:
                run_action(action, done)
            self._boundary(sequences)
        for _, done in actions:
            done.set_exception(Unavailable("the engine was closed", reason="ENGINE_CLOSED"))
        for sequence in sequences:
            self._end(sequence, sequence.cancelled_event())

    def _has_work(self) -> bool:
        return bool(self._closing or self._actions) or any(
            s.cancelled or not s.paused for s in self._sequences.values()
        )

    def _boundary(self, sequences: list[RunningSequence]) -> None:
        for sequence in sequences:
            if sequence.cancelled:
                self._end(sequence, sequence.cancelled_event())
        alive = [s for s in sequences if not s.cancelled]
        self._give_rows(alive)
        ready = [s for s in alive if not s.paused and s.row is not None]
        if ready:
            self._step(ready)

    def _give_rows(self, sequences: list[RunningSequence]) -> None:
        for sequence in sequences:
            if sequence.paused or sequence.row is not None:
                continue
            if not self._pool.free and not self._park_one(sequences):
                return
            sequence.row = self._pool.take()
            if sequence.parked is not None:
                self._pool.unpark(sequence.row, sequence.parked)
                sequence.parked = None

    def _park_one(self, sequences: list[RunningSequence]) -> bool:
        for sequence in reversed(sequences):
            if sequence.paused and sequence.row is not None:
                sequence.parked = self._pool.park(sequence.row, sequence.computed)
                self._pool.give_back(sequence.row)
                sequence.row = None
                return True
        return False

    def _step(self, ready: list[RunningSequence]) -> None:
        plan = plan_step([Pending(i, s.remaining) for i, s in enumerate(ready)], self._prefill_tokens)
        self._steps += 1
        for shares in plan.forwards:
            batch = sorted(((ready[share.index], share) for share in shares), key=lambda pair: pair[0].row or 0)
            self._forward(batch)

    def _forward(self, batch: list[tuple[RunningSequence, Share]]) -> None:
        for sequence, _ in batch:
            sequence.start()
        try:
            results = self._runner.run([chunk_of(sequence, share) for sequence, share in batch])
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
            if sequence.computed < len(sequence.request.token_ids):
                self._prompt_tokens += share.count
            sequence.computed_more(share.count, result.mass)
            if not sequence.remaining:
                finished.append((sequence, result.logits))
        if finished:
            sequences, logits = zip(*finished, strict=True)
            self._choose(sequences, torch.stack(logits))

    def _choose(self, sequences: tuple[RunningSequence, ...], logits: torch.Tensor) -> None:
        """The next token of each; ``logits``: float[B, V]."""
        try:
            chosen = choose_batch([sequence.sampler for sequence in sequences], logits)
        except Exception as error:
            chosen = [error] * len(sequences)
        for sequence, token in zip(sequences, chosen, strict=True):
            try:
                if isinstance(token, Exception):
                    raise token
                event = sequence.accept(token)
            except Exception as error:
                self._fail(sequence, error)
                continue
            self._completion_tokens += 1
            if event.last:
                self._end(sequence, event)
            else:
                self._deliver(sequence, event)

    def _fail(self, sequence: RunningSequence, error: Exception) -> None:
        if not isinstance(error, PremoeError):
            logger.error("sequence %s failed", sequence.request.request_id, exc_info=error)
        self._end(sequence, sequence.failed_event(error))

    def _end(self, sequence: RunningSequence, event: TokenEvent) -> None:
        """Free everything the sequence holds, then tell its owner."""
        with self._wake:
            self._sequences.pop(sequence.request.request_id, None)
        if sequence.row is not None:
            self._pool.give_back(sequence.row)
            sequence.row = None
        sequence.parked = None
        self._deliver(sequence, event)

    def _deliver(self, sequence: RunningSequence, event: TokenEvent) -> None:
        try:
            sequence.on_event(event)
        except Exception:
            logger.exception("the receiver of sequence %s failed; cancelling it", sequence.request.request_id)
            sequence.cancelled = True


def run_action(action: Callable[[], None], done: Future[None]) -> None:
    try:
        action()
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def chunk_of(sequence: RunningSequence, share: Share) -> Chunk:
    assert sequence.row is not None, "only sequences with a KV row are run"
    start = sequence.computed
    return Chunk(
        row=sequence.row,
        start=start,
        tokens=tuple(sequence.tokens[start : start + share.count]),
        pattern_row=sequence.request.pattern_row,
        active=sequence.request.active,
    )


def eos_ids(slot_model: SlotModel) -> frozenset[int]:
    """Token ids that end an answer: generation config, model config and tokenizer, whichever name some."""
    model = slot_model.model
    found: set[int] = set()
    for value in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        slot_model.tokenizer.eos_token_id,
    ):
        if isinstance(value, torch.Tensor):
            value = value.tolist()
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(item) for item in value)
    return frozenset(found)
