"""The few weights that a probe reads, for a process that has no other: embedding, first blocks, first router."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from premoe_runtime.engines.hf.model import bare_model
from premoe_runtime.engines.hf.skeleton import fill_skeleton
from premoe_runtime.families import stock
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
    fill_skeleton(model, facts, source, device=torch.device(device), dtype=dtype, wanted=stock.probed(model, facts))
    return model
