"""Filling a model that was built on the meta device from a pack's skeleton files, one file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from premoe_runtime.families.spec import MoeModel, SkeletonTensor
from premoe_runtime.families.stored import every_stored
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.safetensors import Tensor, parse_file
from premoe_runtime.packs.consistency import refuse, skeleton_contradiction
from premoe_runtime.packs.contents import WEIGHT_DTYPES, TensorInfo
from premoe_runtime.residency.blob_fields import TORCH_DTYPES, torch_dtype
from premoe_runtime.residency.source import ExpertSource

_DTYPES = TORCH_DTYPES | {"F64": torch.float64, "BOOL": torch.bool}
Entry = Tensor | TensorInfo
"""A tensor as a file's header describes it."""


def read_tensors(data: bytes, where: str) -> Iterator[tuple[Tensor, torch.Tensor]]:
    """Each tensor of a safetensors file, copied out one by one, so that one file plus one tensor are in memory.

    Raises CorruptData when the header does not describe the bytes.
    """
    # By name, so that tensors which stand for one weight follow each other.
    for tensor in sorted(parse_file(data, where=where).tensors, key=lambda tensor: tensor.name):
        if tensor.dtype not in _DTYPES:
            raise CorruptData(
                f"{where}: dtype {tensor.dtype} of {tensor.name} cannot be run", reason="SKELETON_INVALID"
            )
        copy = empty_tensor(tensor)
        bytes_of(copy)[:] = memoryview(data)[tensor.offset : tensor.offset + tensor.num_bytes]
        yield tensor, copy


def empty_tensor(described: Entry) -> torch.Tensor:
    """A tensor of that dtype and shape in main memory, its bytes still to be read."""
    return torch.empty(described.shape, dtype=_DTYPES[described.dtype])


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as safetensors files name it."""
    return next(name for name, known in _DTYPES.items() if known == dtype)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor in main memory, shared and writable."""
    view: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return view


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

    ``facts``: what the family makes of the config. Tensors are cast to ``dtype``, or dequantised into it; a router that
    the checkpoint stores wider than its experts stays so. The model's routed experts must have been replaced before.
    Parameters whose name in the module tree is not ``wanted`` stay on the meta device. Raises CorruptData when the
    skeleton does not fit the model, after as much of it as does.
    """
    manifest = source.manifest()
    tensors = (
        tensor
        for file in manifest.skeleton
        if file.path.endswith(".safetensors")
        for tensor in read_tensors(source.read_file(file.path), file.path)
    )
    stored = torch_dtype(manifest.dtype)
    found = place(model, facts, tensors, stored=stored, device=device, dtype=dtype, wanted=wanted)
    refuse(skeleton_contradiction(manifest, facts, found))
    make_ready(model, facts, device=device, dtype=dtype)


def place(
    model: nn.Module,
    facts: MoeModel,
    tensors: Iterable[tuple[Entry, torch.Tensor]],
    *,
    stored: torch.dtype,
    device: torch.device,
    dtype: torch.dtype,
    wanted: Callable[[str], bool] = lambda name: True,
) -> list[Entry]:
    """Make tensors of the skeleton the model's and return which these were; ``stored``: the dtype of experts.

    Tensors that stand for one weight follow each other. What is not of this model is left for
    ``skeleton_contradiction`` to refuse.
    """
    weights, found = _Weights(facts), list[Entry]()
    for entry, tensor in tensors:
        found.append(entry)
        known = weights.known(entry)
        if known is None or entry.shape != known.shape:
            continue  # to be refused with all that is wrong in sight
        name = known.makes or known.memory
        if not wanted(name):
            continue
        own = known.own_dtype and not known.makes and tensor.dtype != stored
        kept = torch.promote_types(tensor.dtype, dtype) if own else dtype
        kept = torch.float32 if known.float32 else kept
        weight = weights.made(known, tensor, kept) if known.makes else tensor
        if weight is not None:
            assign(model, name, weight.to(device=device, dtype=kept))
    return found


def make_ready(model: PreTrainedModel, facts: MoeModel, *, device: torch.device, dtype: torch.dtype) -> None:
    """Fill what is in no file, tie weights, and say in the config what the model is. Placed tensors stay."""
    missing = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
    _fill_buffers(model, device)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()
    config: Any = model.config
    config.dtype = dtype
    config.max_position_embeddings = facts.context  # after the frequencies: whoever bounds prompts reads it here


class _Weights:
    """What the skeleton's tensors are, and weights put together of those that stand for one."""

    def __init__(self, facts: MoeModel) -> None:
        self._plain, self._stored, self._numbers = facts.skeleton, every_stored(facts).skeleton, facts.numbers
        self._parts: dict[str, dict[str, torch.Tensor]] = {}

    def known(self, entry: Entry) -> SkeletonTensor | None:
        """By its name, or its dtype, a tensor stands for a weight together with others, or it is the weight."""
        plain, part = self._plain.get(entry.name), self._stored.get(entry.name)
        return plain if plain is not None and entry.dtype in WEIGHT_DTYPES else part

    def made(self, known: SkeletonTensor, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """The weight in ``dtype``, once the last of its tensors is here."""
        if self._numbers is None:
            return None
        parts, names = self._parts.setdefault(known.makes, {}), self._numbers.names(known.makes)
        parts[known.memory] = tensor
        if len(parts) < len(names):
            return None
        del self._parts[known.makes]
        return self._numbers.dequantise([parts[name] for name in names], dtype)


def assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
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
