"""Filling a model that was built on the meta device from a pack's skeleton files, one file at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from premoe_runtime.engines.hf.modelling import Modelling
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.safetensors import parse_file
from premoe_runtime.residency.slot_layout import TORCH_DTYPES
from premoe_runtime.residency.source import ExpertSource

_DTYPES = TORCH_DTYPES | {"F64": torch.float64, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool}


def read_tensors(data: bytes, where: str) -> Iterator[tuple[str, torch.Tensor]]:
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
        yield tensor.name, copy


def fill_skeleton(
    model: PreTrainedModel, modelling: Modelling, source: ExpertSource, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Give every parameter its weights (cast to ``dtype``), every non-persistent buffer its values, and tie.

    The model's routed experts must have been replaced before. Raises CorruptData or InvalidInput when the skeleton does
    not fit the model.
    """
    missing = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
    for file in source.manifest().skeleton:
        if not file.path.endswith(".safetensors"):
            continue
        for disk_name, tensor in read_tensors(source.read_file(file.path), file.path):
            name = modelling.in_memory(disk_name)
            _assign(model, name, tensor.to(device=device, dtype=dtype), f"{file.path}: {disk_name}")
            missing.discard(name)
    _fill_buffers(model, device)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    if missing:
        raise CorruptData(
            f"the pack's skeleton lacks {sorted(missing)[0]} ({len(missing)} tensors in all); pack the model again",
            reason="SKELETON_INCOMPLETE",
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _assign(model: nn.Module, name: str, tensor: torch.Tensor, where: str) -> None:
    parent_name, _, leaf = name.rpartition(".")
    try:
        parent = model.get_submodule(parent_name)
        present = getattr(parent, leaf)
    except AttributeError as error:
        raise InvalidInput(f"{where}: the model has no such tensor", reason="SKELETON_UNEXPECTED") from error
    if present.shape != tensor.shape:
        raise InvalidInput(
            f"{where}: shape {list(tensor.shape)} where the config says {list(present.shape)}", reason="SKELETON_SHAPE"
        )
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
