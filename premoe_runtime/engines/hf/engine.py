"""The transformers engine: modelling code of the model's family under a step loop of ours."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import torch

from premoe_runtime.engines.base import (
    Cancel,
    Check,
    Checked,
    Command,
    Ended,
    Load,
    Loaded,
    Pause,
    Publish,
    Published,
    Report,
    RequestLimits,
    Resume,
    Retire,
    StopLoad,
    Submit,
)
from premoe_runtime.engines.grammar import Grammars, Matcher
from premoe_runtime.engines.hf.kv import KVPool
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.engines.hf.running import RunningSequences
from premoe_runtime.engines.hf.step import StepRunner, kept_state, kv_shape
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.residency.copier import Copier, Copy
from premoe_runtime.residency.host_arena import HostArena

logger = logging.getLogger(__name__)

DEFAULT_MAX_SEQUENCES = 8
DEFAULT_CONTEXT = 4096
DEFAULT_PREFILL_TOKENS = 256
_CLOSE_SECONDS = 30.0
"""How long ``close`` waits for the step and the copy at hand."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The grammar of a sequence is there, or cannot be."""

    request: Submit
    matcher: Matcher | Exception


class HfEngine:
    """Continuous batching over one slot model; implements ``premoe_runtime.engines.base.Engine``.

    One thread runs steps and, between them, carries out commands; others copy blobs and compile grammars meanwhile.
    KV memory: ``max_sequences`` × ``context`` tokens on the device, and at most ``parked_bytes`` (default: as much
    again) of paused sequences in host memory.
    """

    def __init__(
        self,
        slot_model: SlotModel,
        arena: HostArena,
        *,
        max_sequences: int = DEFAULT_MAX_SEQUENCES,
        context: int | None = None,
        prefill_tokens: int = DEFAULT_PREFILL_TOKENS,
        parked_bytes: int | None = None,
    ) -> None:
        config = slot_model.model.config.get_text_config()
        longest = int(config.max_position_embeddings)
        if context is not None and context > longest:
            raise InvalidInput(
                f"context {context} is outside 1 to {longest}, the model's own; lower it", reason="CONTEXT_INVALID"
            )
        context = context or min(DEFAULT_CONTEXT, longest)
        self.limits = RequestLimits(context, int(config.vocab_size), slot_model.manifest.top_k)
        self._store = slot_model.store
        self._pool = KVPool(kv_shape(slot_model), rows=max_sequences, context=context, kept=kept_state(slot_model))
        self._sequences = RunningSequences(
            StepRunner(slot_model, self._pool),
            self._pool,
            slot_model.tokenizer,
            eos_ids(slot_model),
            prefill_tokens=prefill_tokens,
            parked_bytes=self._pool.num_bytes if parked_bytes is None else parked_bytes,
            short_tokens=slot_model.short_tokens,
        )
        if self._store.device.type == "cuda":
            arena.lock_pages()
        self._arena = arena
        self._copier = Copier(self._store, arena)
        self._grammars = Grammars(slot_model.tokenizer, self.limits.vocabulary, eos_ids(slot_model))
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="premoe-grammar")
        self._inbox: SimpleQueue[Command | _Compiled | None] = SimpleQueue()
        self._copies: SimpleQueue[tuple[Copy, torch.cuda.Event | None, int] | None] = SimpleQueue()
        self._stop_load = threading.Event()
        self._retired: tuple[torch.cuda.Event | None, int] = (None, 0)
        self._report: Callable[[Report], None] = lambda report: None
        self._threads = (
            threading.Thread(target=self._run, name="premoe-engine", daemon=True),
            threading.Thread(target=self._run_copies, name="premoe-copy", daemon=True),
        )

    def start(self, report: Callable[[Report], None]) -> None:
        self._report = report
        for thread in self._threads:
            thread.start()

    def post(self, command: Command) -> None:
        if isinstance(command, StopLoad):
            # Between two steps would be late: the copy runs beside them.
            self._stop_load.set()
        else:
            self._inbox.put(command)

    def close(self) -> None:
        self._stop_load.set()
        self._inbox.put(None)
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(_CLOSE_SECONDS)
        self._compiling.shutdown(wait=False, cancel_futures=True)
        if not any(thread.is_alive() for thread in self._threads):
            self._arena.unlock_pages()

    # The rest runs on the engine's threads.

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._carry_out_commands():
                self._sequences.step()
                self._tell()
            self._sequences.cancel_all()
            self._tell()
        except BaseException as failure:
            logger.critical("the engine ends", exc_info=failure)
            error = failure
        self._copies.put(None)
        self._report(Ended(error))

    def _carry_out_commands(self) -> bool:
        """All commands that are there; waits for one while nothing can run. False once the engine is to close."""
        while True:
            try:
                command = self._inbox.get(block=not self._sequences.can_step)
            except Empty:
                return True
            if command is None:
                return False
            self._carry_out(command)
            if not self._sequences.can_step:
                self._tell()

    def _carry_out(self, command: Command | _Compiled) -> None:
        match command:
            case _Compiled(request, matcher):
                self._sequences.compiled(request, matcher)
            case Submit():
                self._submit(command)
            case Cancel(ids):
                self._sequences.cancel(ids)
            case Pause(ids):
                self._sequences.set_paused(ids, True)
            case Resume(ids):
                self._sequences.set_paused(ids, False)
            case Retire(experts):
                self._retired = self._store.retire(experts), time.time_ns()
            case Load(copy):
                self._copies.put((copy, *self._retired))
            case Publish(placements, row):
                rows = {} if row is None else {row.row: row.kept}
                self._store.publish(placements, rows, semantics="selection" if row is None else row.semantics)
                self._report(Published(time.time_ns()))
            case Check():
                self._report(Checked(self._check()))

    def _submit(self, request: Submit) -> None:
        try:
            self.limits.check(request.token_ids, request.active, request.sampling)
            self._sequences.add(request)
        except Exception as error:
            self._sequences.refuse(request.request_id, error)
            return
        if request.grammar:
            self._compiling.submit(self._compile, request)

    def _compile(self, request: Submit) -> None:
        if not self._sequences.wants(request):
            return
        matcher: Matcher | Exception
        try:
            matcher = self._grammars.compile(request.grammar)
        except Exception as error:
            matcher = error
        self._inbox.put(_Compiled(request, matcher))

    def _check(self) -> Exception | None:
        try:
            self._store.check_integrity()
        except Exception as error:
            return error
        return None

    def _tell(self) -> None:
        self._report(self._sequences.report())

    def _run_copies(self) -> None:
        while (item := self._copies.get()) is not None:
            copy, after, retired_ns = item
            copied = self._copier.run(copy, self._stop_load.is_set, after=after)
            self._stop_load.clear()
            self._report(Loaded(copied, retired_ns))


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
