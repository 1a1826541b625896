"""Filling a model that was built on the meta device from a pack's skeleton files, one file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.safetensors import Tensor, parse_file
from premoe_runtime.packs.consistency import refuse, skeleton_contradiction
from premoe_runtime.residency.blob_fields import TORCH_DTYPES, torch_dtype
from premoe_runtime.residency.source import ExpertSource

_DTYPES = TORCH_DTYPES | {"F64": torch.float64, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool}


def read_tensors(data: bytes, where: str) -> Iterator[tuple[Tensor, torch.Tensor]]:
    """Each tensor of a safetensors file, copied out one by one, so that one file plus one tensor are in memory.

    Raises CorruptData when the header does not describe the bytes.
    """
    for tensor in parse_file(data, where=where).tensors:
        if tensor.dtype not in _DTYPES:
            raise CorruptData(
                f"{where}: dtype {tensor.dtype} of {tensor.name} cannot be run", reason="SKELETON_INVALID"
            )
        copy = torch.empty(tensor.shape, dtype=_DTYPES[tensor.dtype])
        copy.reshape(-1).view(torch.uint8).numpy()[:] = np.frombuffer(data, np.uint8, tensor.num_bytes, tensor.offset)
        yield tensor, copy


def fill_skeleton(
    model: PreTrainedModel,
    facts: MoeModel,
    source: ExpertSource,
    *,
    device: torch.device,
    dtype: torch.dtype,
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Give every parameter its weights, every non-persistent buffer its values, tie, and make it ready to run.

    ``facts``: what the family makes of the config. Tensors are cast to ``dtype``; a router that the checkpoint stores
    wider than its experts stays so. The model's routed experts must have been replaced before. Parameters whose name
    in the module tree is not ``wanted`` stay on the meta device. Raises CorruptData when the skeleton does not fit the
    model, after as much of it as does.
    """
    stored, found = torch_dtype(source.manifest().dtype), list[Tensor]()
    missing = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
    for file in source.manifest().skeleton:
        if not file.path.endswith(".safetensors"):
            continue
        for entry, tensor in read_tensors(source.read_file(file.path), file.path):
            found.append(entry)
            known = facts.skeleton.get(entry.name)
            if known is None or entry.shape != known.shape:
                continue  # to be refused with all that is wrong in sight
            if not wanted(known.memory):
                continue
            own = known.own_dtype and tensor.dtype != stored
            kept = torch.promote_types(tensor.dtype, dtype) if own else dtype
            kept = torch.float32 if known.float32 else kept
            _assign(model, known.memory, tensor.to(device=device, dtype=kept))
            missing.discard(known.memory)
    refuse(skeleton_contradiction(source.manifest(), facts, found))
    _fill_buffers(model, device)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()
    config: Any = model.config
    config.dtype = dtype
    config.max_position_embeddings = facts.context  # after the frequencies: whoever bounds prompts reads it here


def _assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if leaf in parent._parameters:
        setattr(parent, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        parent._buffers[leaf] = tensor


def _fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Non-persistent buffers (rotary frequencies) are in no file: the stock class computes them from the config."""
    for module in model.modules():
        names = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in names:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if names:
            model._init_weights(module)
