"""The worker's engine: transformers in threads of its own process or in a process beside it, or vLLM in such a one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Literal

import torch
from premoe_servicekit.logs import setup_logging
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from premoe_runtime.engines.base import Engine
from premoe_runtime.engines.child.engine import ChildEngine
from premoe_runtime.engines.child.ranked import Member, RankedEngine
from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.engines.hf.tokenizer import load_tokenizer
from premoe_runtime.engines.vllm import compat
from premoe_runtime.engines.vllm.arguments import check_given
from premoe_runtime.engines.vllm.coverage import check_covered
from premoe_runtime.engines.vllm.engine import VllmEngine
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.probing.weights import load_probing_model
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.source import ExpertSource
from premoe_worker.settings import WorkerSettings

log = logging.getLogger(__name__)

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
    source: ExpertSource, opener: Opener, shape: SlotShape, arena: HostArena, settings: WorkerSettings
) -> Loaded:
    """The engine in a child process; here lie the few weights that a probe reads, once more."""
    # The class that read the flags was made for them; a child finds only ours.
    plain = WorkerSettings.model_construct(**settings.model_dump())
    build = partial(_build, opener, shape, arena, plain)
    engine: Engine
    if shape.ranks > 1:
        engine = RankedEngine(lambda member: partial(build, member), shape.ranks)
    else:
        engine = ChildEngine(build)
    model, tokenizer = load_probing_model(source, device=settings.device), load_tokenizer(source)
    return engine, model, tokenizer


@contextmanager
def _build(
    opener: Opener, shape: SlotShape, arena: HostArena, settings: WorkerSettings, member: Member | None = None
) -> Iterator[Engine]:
    """In the child. ``member``: of the ranks, where there are several."""
    setup_logging("worker", level=settings.log_level, log_format=settings.log_format)
    threads = settings.threads or torch.get_num_threads()
    # Ranks wait for each other without giving their cores away.
    torch.set_num_threads(max(1, threads // shape.ranks))
    with opener() as source:
        if settings.engine == "hf":
            yield load_here(source, shape.slots, arena, settings)[0]
            return
        yield VllmEngine(
            source,
            shape,
            arena,
            active=_widths(settings),
            max_sequences=settings.max_sequences,
            context=settings.context_length,
            device=settings.device,
            given=settings.vllm_arguments,
            crew=None if member is None else member.crew(),
        )


def _widths(settings: WorkerSettings) -> list[int]:
    """Numbers of experts that a token uses under the worker's budgets."""
    return [Budget.parse(text).active for text in (settings.budget, settings.generalist_budget) if text]


def choose_engine(settings: WorkerSettings, manifest: Manifest) -> Literal["hf", "vllm"]:
    """The one that is asked for; of `auto`, vLLM where all that can be known before it is loaded speaks for it.

    Raises InvalidInput for vLLM where it is asked for and not there, and for its arguments without it.
    """
    if settings.engine == "hf":
        if settings.vllm_arguments:
            raise InvalidInput("engine_arguments are vLLM's; ask for --engine vllm too", reason="ENGINE_ARGUMENT")
        return "hf"
    check_given(settings.vllm_arguments)
    try:
        # Names inside it are looked up by the process that imports it.
        compat.check(compat.version(), needed=())
        check_covered(manifest)
    except InvalidInput as error:
        if settings.engine == "vllm":
            raise
        say_hf(error)
        return "hf"
    return "vllm"


def say_hf(why: InvalidInput) -> None:
    """One line of the log: `auto` has come to transformers."""
    log.info("the engine hf serves: %s", why)
