"""A checkpoint's tensors against what its family expects: canonical names, what is needless, what is wrong. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.errors import CorruptData, InvalidInput

WEIGHT_DTYPES = ("BF16", "F16", "F32")
_MTP = re.compile(r"(model\.)?mtp\b.*")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: ``offset`` from the start of ``file``, ``num_bytes`` of row-major data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    num_bytes: int


class LeftOut(NamedTuple):
    """Something of a checkpoint that its pack does not need, and why."""

    name: str
    why: str


def stored_names(model: MoeModel) -> dict[str, str]:
    """Every name that a tensor of this model may be stored under, with its canonical one.

    A skeleton tensor's canonical name is the one that ``save_pretrained`` writes by default; with fused experts it
    writes the names of the module tree. Experts may be stored one by one or fused, whole fields at a time.
    """
    names = {one.memory: name for name, one in model.skeleton.items()} | {name: name for name in model.skeleton}
    for layer in range(len(model.blocks)):
        for field in model.spec.fields:
            canonical, *others = model.fused_names(layer, field)
            names |= dict.fromkeys((canonical, *others), canonical)
        for expert in range(model.num_experts):
            names |= {name: name for name in (model.expert_name(layer, expert, one) for one in model.expert_tensors)}
    return names


def match(
    found: Mapping[str, TensorInfo], model: MoeModel, predicted_blocks: int, where: str
) -> tuple[dict[str, TensorInfo], list[LeftOut]]:
    """The tensors to be packed, by canonical name, and those that no pack needs.

    ``predicted_blocks``: how many blocks after the last one are multi-token prediction. Raises InvalidInput
    (unexpected names, dtypes, layers of different sizes) and CorruptData (missing, doubled or misshapen tensors).
    """
    names = stored_names(model)
    kept: dict[str, TensorInfo] = {}
    dropped: list[LeftOut] = []
    for stored, tensor in sorted(found.items()):
        name = names.get(stored, stored)
        if name in kept:
            raise CorruptData(
                f"{where}: tensor {name} is in {kept[name].file} and, as {stored}, in {tensor.file}",
                reason="TENSOR_DUPLICATE",
            )
        if stored not in names and (why := _needless(stored, model, predicted_blocks)):
            dropped.append(LeftOut(stored, why))
        else:
            kept[name] = replace(tensor, name=name)
    _check(kept, model, where)
    return kept, dropped


def experts_dtype(tensors: Mapping[str, TensorInfo], model: MoeModel, where: str) -> str:
    """The one dtype of all routed experts' weights. Raises InvalidInput."""
    first, *others = sorted(
        name for field, name in _expert_names(tensors, model) if model.spec.field(field).dtype is None
    )
    for name in others:
        if tensors[name].dtype != tensors[first].dtype:
            raise InvalidInput(
                f"{where}: routed experts of two dtypes: {first} is {tensors[first].dtype}, "
                f"{name} is {tensors[name].dtype}",
                reason="DTYPE_UNSUPPORTED",
            )
    return tensors[first].dtype


def _needless(name: str, model: MoeModel, predicted_blocks: int) -> str:
    """Why the model needs no tensor of this name; empty when there is no such reason."""
    block = re.fullmatch(re.escape(model.spec.layers) + r"\.(\d+)\..*", name)
    if _MTP.fullmatch(name) or (block and model.num_blocks <= int(block[1]) < model.num_blocks + predicted_blocks):
        return "multi-token prediction"
    module = name.rpartition(".")[0].rpartition(".")[2]
    return "computed anew from the config" if module in model.recomputed else ""


def _check(tensors: Mapping[str, TensorInfo], model: MoeModel, where: str) -> None:
    _check_even(tensors, model, where)
    fields = {name: field for field, name in _expert_names(tensors, model)}
    shapes = {name: one.shape for name, one in model.skeleton.items()}
    shapes |= {name: _expert_shape(name, field, model) for name, field in fields.items()}
    for name in sorted(tensors.keys() - shapes.keys()):
        if name.startswith(tuple(f"{prefix}." for prefix in model.experts_prefix)) and name in stored_names(model):
            raise CorruptData(
                f"{where}: tensor {name} is there beside the fused one; keep one form", reason="TENSOR_DUPLICATE"
            )
        raise InvalidInput(
            f"{where}: unexpected tensor {name} for a {model.family} with {model.num_experts} experts a layer "
            f"(variants of the family are not supported)",
            reason="UNEXPECTED_TENSOR",
        )
    tied = {name for name, one in model.skeleton.items() if one.optional}
    for name in sorted(shapes.keys() - tensors.keys() - tied):
        raise CorruptData(f"{where}: tensor {name} is missing", reason="TENSOR_MISSING")
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != shapes[name]:
            raise CorruptData(
                f"{where}: tensor {name} has shape {list(tensor.shape)}, config.json says {list(shapes[name])}",
                reason="TENSOR_SHAPE",
            )
        own = model.spec.field(fields[name]).dtype if name in fields else None
        allowed = WEIGHT_DTYPES if own is None else (own,)
        if tensor.dtype not in allowed:
            raise InvalidInput(
                f"{where}: tensor {name} has dtype {tensor.dtype}; supported: {', '.join(allowed)}",
                reason="DTYPE_UNSUPPORTED",
            )


def _check_even(tensors: Mapping[str, TensorInfo], model: MoeModel, where: str) -> None:
    """Layers pruned to different numbers of experts have routers of different heights."""
    rows = {
        name: tensors[name].shape[0]
        for name in model.routers
        if name in tensors and tensors[name].shape[1:] == (model.hidden_size,)
    }
    if len(set(rows.values())) > 1:
        few, many = min(rows, key=rows.__getitem__), max(rows, key=rows.__getitem__)
        raise InvalidInput(
            f"{where}: layers have different numbers of experts ({few} has {rows[few]} rows, {many} has {rows[many]}), "
            "which the one number in config.json cannot say; prune every layer to the same number of experts",
            reason="UNEVEN_EXPERTS",
        )


def _expert_names(tensors: Mapping[str, TensorInfo], model: MoeModel) -> Iterator[tuple[str, str]]:
    """(field, name) of every tensor that holds routed experts, fused where the checkpoint has a fused one."""
    for layer in range(len(model.blocks)):
        for field in model.spec.fields:
            fused = model.fused_names(layer, field)[0]
            if fused in tensors:
                yield field.name, fused
                continue
            for expert in range(model.num_experts):
                for part in field.parts:
                    yield field.name, f"{model.experts_prefix[layer]}.{expert}.{part}"


def _expert_shape(name: str, field: str, model: MoeModel) -> tuple[int, ...]:
    if name.endswith(f".{model.spec.field(field).fused}"):
        return model.fused_shape(model.spec.field(field))
    return next(one.shape for one in model.expert_tensors if name.endswith(f".{one.suffix}"))
