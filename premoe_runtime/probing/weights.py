"""The few weights that a probe reads, for a process that has no other: embedding, first blocks, first router."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from premoe_runtime.engines.hf.model import bare_model
from premoe_runtime.engines.hf.skeleton import fill_skeleton
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.residency.blob_fields import torch_dtype
from premoe_runtime.residency.source import ExpertSource


def load_probing_model(
    source: ExpertSource, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The stock class, filled as far as a ``Prober`` reads it; the rest stays on the meta device and takes no memory.

    Every skeleton file is read, one at a time. Raises what ``load_slot_model`` raises, but for slots.
    """
    model, facts = bare_model(source)
    dtype = dtype or torch_dtype(source.manifest().dtype)
    fill_skeleton(model, facts, source, device=torch.device(device), dtype=dtype, wanted=_reads(model, facts))
    return model


def _reads(model: PreTrainedModel, facts: MoeModel) -> Callable[[str], bool]:
    """Whether a probe reads a parameter, by its name in the module tree."""
    spec, first = facts.spec, facts.blocks[0]
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    whole = (f"{embedding}.", *(f"{spec.layers}.{block}." for block in range(first + 1)))
    sparse = f"{spec.layers}.{first}.{spec.sparse}."
    router = f"{sparse}{spec.router_module}."
    # A tied embedding may be stored under its other name.
    pairs = model.all_tied_weights_keys.items()
    tied = {name for pair in pairs if f"{embedding}.weight" in pair for name in pair}

    def reads(name: str) -> bool:
        if name.startswith(sparse):
            return name.startswith(router)
        return name.startswith(whole) or name in tied

    return reads
