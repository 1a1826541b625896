"""The worker's engine: in threads of its own process, or in a process beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from premoe_servicekit.logs import setup_logging
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from premoe_runtime.engines.base import Engine
from premoe_runtime.engines.child.engine import ChildEngine
from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.engines.hf.tokenizer import load_tokenizer
from premoe_runtime.probing.weights import load_probing_model
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.source import ExpertSource
from premoe_worker.settings import WorkerSettings

Opener = Callable[[], AbstractContextManager[ExpertSource]]
"""Opens the pack's source in another process; can be pickled."""

Loaded = tuple[Engine, PreTrainedModel, PreTrainedTokenizerBase]
"""An engine, and beside it a model with at least the weights of a probe, and a tokenizer."""


def load_here(source: ExpertSource, slots: Sequence[int], arena: HostArena, settings: WorkerSettings) -> Loaded:
    """The engine in this process; its model is the prober's too."""
    slot_model = load_slot_model(source, slots=slots, device=settings.device)
    engine = HfEngine(slot_model, arena, max_sequences=settings.max_sequences, context=settings.context_length)
    return engine, slot_model.model, slot_model.tokenizer


def load_in_child(
    source: ExpertSource, opener: Opener, slots: Sequence[int], arena: HostArena, settings: WorkerSettings
) -> Loaded:
    """The engine in a child process; here lie the few weights that a probe reads, once more."""
    model, tokenizer = load_probing_model(source, device=settings.device), load_tokenizer(source)
    # The class that read the flags was made for them; a child finds only ours.
    plain = WorkerSettings.model_construct(**settings.model_dump())
    return ChildEngine(partial(_build, opener, tuple(slots), arena, plain)), model, tokenizer


@contextmanager
def _build(opener: Opener, slots: tuple[int, ...], arena: HostArena, settings: WorkerSettings) -> Iterator[Engine]:
    """In the child."""
    setup_logging("worker", level=settings.log_level, log_format=settings.log_format)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with opener() as source:
        yield load_here(source, slots, arena, settings)[0]
