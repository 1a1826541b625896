"""The transformers engine: modelling code of the model's family under a step loop of ours."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from premoe_runtime.engines.base import RequestLimits
from premoe_runtime.engines.grammar import Grammars
from premoe_runtime.engines.hf.kv import KVPool
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.engines.hf.running import RunningSequences
from premoe_runtime.engines.hf.step import StepRunner, kept_state, kv_shape
from premoe_runtime.engines.stepping import (
    DEFAULT_CONTEXT,
    DEFAULT_MAX_SEQUENCES,
    DEFAULT_PREFILL_TOKENS,
    StepEngine,
)
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.residency.copier import Copier
from premoe_runtime.residency.host_arena import HostArena


class HfEngine(StepEngine):
    """Continuous batching over one slot model.

    KV memory: ``max_sequences`` × ``context`` tokens on the device, and at most ``parked_bytes`` (default: as much
    again) of paused sequences in host memory. Raises InvalidInput for a context that the model does not have.
    """

    _sequences: RunningSequences

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
        limits = request_limits(slot_model.model, slot_model.manifest.top_k, context)
        pool = KVPool(kv_shape(slot_model), rows=max_sequences, context=limits.context, kept=kept_state(slot_model))
        ends = eos_ids(slot_model.model, slot_model.tokenizer)
        sequences = RunningSequences(
            StepRunner(slot_model, pool),
            pool,
            slot_model.tokenizer,
            ends,
            prefill_tokens=prefill_tokens,
            parked_bytes=pool.num_bytes if parked_bytes is None else parked_bytes,
            short_tokens=slot_model.short_tokens,
        )
        store, grammars = slot_model.store, Grammars(slot_model.tokenizer, limits.vocabulary, ends)
        super().__init__(limits, sequences, store, Copier(store, arena), grammars, arena)


def request_limits(model: PreTrainedModel, top_k: int, context: int | None) -> RequestLimits:
    """``context``: default 4096, or what the model has if less. Raises InvalidInput for more than it has."""
    config = model.config.get_text_config()
    longest = int(config.max_position_embeddings)
    if context is not None and context > longest:
        raise InvalidInput(
            f"context {context} is outside 1 to {longest}, the model's own; lower it", reason="CONTEXT_INVALID"
        )
    return RequestLimits(context or min(DEFAULT_CONTEXT, longest), int(config.vocab_size), top_k)


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Token ids that end an answer: generation config, model config and tokenizer, whichever name some."""
    found: set[int] = set()
    for value in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if isinstance(value, torch.Tensor):
            value = value.tolist()
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(item) for item in value)
    return frozenset(found)
