"""A checkpoint's tensors against what its family expects: canonical names, what is needless, what is wrong. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from premoe_runtime.families.spec import ExpertField, MoeModel
from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import CorruptData, InvalidInput

WEIGHT_DTYPES = ("BF16", "F16", "F32")
_QUANTISED = ("qweight", "qzeros", "g_idx", "scales", "_packed", "_scale", "_scale_inv", "_zero_point")
"""How names of tensors end that only number formats have."""
_CURE = "correct the checkpoint"
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
        for field in model.fields:
            if fused := model.fused_names(layer, field):
                names |= dict.fromkeys(fused, fused[0])
        for expert in range(model.layer_experts[layer]):
            names |= {name: name for name in (model.expert_name(layer, expert, one) for one in model.expert_tensors)}
    return names


def with_experts_found(model: MoeModel, found: Mapping[str, TensorInfo], where: str) -> MoeModel:
    """The model with as many experts in each layer as its router has rows, at most the config's number.

    Other shapes of routers are left for ``match`` to refuse. Raises InvalidInput: more than that, or fewer than a token
    uses.
    """
    rows = []
    for name in model.routers:
        known = model.skeleton[name]
        stored = found.get(name) or found.get(known.memory)
        rows.append(stored.shape[0] if stored and stored.shape[1:] == known.shape[1:] else known.shape[0])
        if rows[-1] > known.shape[0]:
            raise InvalidInput(
                f"{where}: {name} has {rows[-1]} rows, but config.json says {known.shape[0]} experts; "
                "write the largest number of any layer there",
                reason="EXPERTS_TOO_MANY",
            )
        if rows[-1] < model.top_k:
            raise InvalidInput(
                f"{where}: {name} has {rows[-1]} rows, but by config.json every token needs {model.top_k} experts; "
                "prune fewer experts, or lower num_experts_per_tok",
                reason="EXPERTS_TOO_FEW",
            )
    return model.cut_to(rows)


def match(
    found: Mapping[str, TensorInfo], model: MoeModel, predicted_blocks: int, where: str
) -> tuple[dict[str, TensorInfo], list[LeftOut]]:
    """The tensors to be packed, by canonical name, and those that no pack needs.

    ``predicted_blocks``: how many blocks after the last one are multi-token prediction. Raises InvalidInput
    (unexpected names, dtypes) and CorruptData (missing, doubled or misshapen tensors).
    """
    names = stored_names(model)
    kept: dict[str, TensorInfo] = {}
    dropped: list[LeftOut] = []
    for stored, tensor in sorted(found.items()):
        name = names.get(stored, stored)
        if name in kept:
            raise CorruptData(
                f"{where}: tensor {name} is in {kept[name].file} and, as {stored}, in {tensor.file}; {_CURE}",
                reason="TENSOR_DUPLICATE",
            )
        if stored not in names and (why := _needless(stored, model, predicted_blocks)):
            dropped.append(LeftOut(stored, why))
        else:
            kept[name] = replace(tensor, name=name)
    _check(kept, model, where)
    return kept, dropped


def experts_dtypes(tensors: Mapping[str, TensorInfo], model: MoeModel, where: str) -> dict[str, str]:
    """The one dtype of each field of all routed experts; fields without dtypes of their own share one. Raises
    InvalidInput.
    """
    first: dict[str, TensorInfo] = {}
    for one in sorted(_stored_experts(tensors, model)):
        tensor = tensors[one.name]
        known = first.setdefault(one.field.name if one.field.dtypes else "", tensor)
        if tensor.dtype != known.dtype:
            raise InvalidInput(
                f"{where}: routed experts of two dtypes: {known.name} is {known.dtype}, "
                f"{one.name} is {tensor.dtype}; {_CURE}",
                reason="DTYPE_UNSUPPORTED",
            )
    return {field.name: first[field.name if field.dtypes else ""].dtype for field in model.fields}


def computed_dtype(dtypes: Mapping[str, str], model: MoeModel) -> str:
    """What experts with fields of these dtypes are computed in, unless a loader asks for another."""
    if not model.plain:
        return model.stated_dtype or "BF16"
    return next(dtypes[field.name] for field in model.fields if not field.dtypes)


def _needless(name: str, model: MoeModel, predicted_blocks: int) -> str:
    """Why the model needs no tensor of this name; empty when there is no such reason."""
    block = re.fullmatch(re.escape(model.spec.layers) + r"\.(\d+)\..*", name)
    if _MTP.fullmatch(name) or (block and model.num_blocks <= int(block[1]) < model.num_blocks + predicted_blocks):
        return "multi-token prediction"
    if model.numbers is not None and (why := model.numbers.needless(name)):
        return why
    module = name.rpartition(".")[0].rpartition(".")[2]
    return "computed anew from the config" if module in model.recomputed else ""


def _check(tensors: Mapping[str, TensorInfo], model: MoeModel, where: str) -> None:
    experts = {one.name: one for one in _stored_experts(tensors, model)}
    shapes = {name: one.shape for name, one in model.skeleton.items()} | {
        one.name: one.shape for one in experts.values()
    }
    for name in sorted(tensors.keys() & shapes.keys()):
        tensor = tensors[name]
        own = experts[name].field.dtypes if name in experts else model.skeleton[name].dtypes
        allowed = own or WEIGHT_DTYPES
        if tensor.dtype not in allowed:
            raise InvalidInput(
                f"{where}: tensor {name} has dtype {tensor.dtype}; supported: {', '.join(allowed)}"
                f"{_hint(tensor, model, own)}; {_CURE}",
                reason="DTYPE_UNSUPPORTED",
            )
        if tensor.shape != shapes[name]:
            raise CorruptData(
                f"{where}: tensor {name} has shape {list(tensor.shape)}, "
                f"config.json says {list(shapes[name])}; {_CURE}",
                reason="TENSOR_SHAPE",
            )
    for name in sorted(tensors.keys() - shapes.keys()):
        if name.startswith(tuple(f"{prefix}." for prefix in model.experts_prefix)) and name in stored_names(model):
            raise CorruptData(
                f"{where}: tensor {name} is there beside the fused one; keep one form", reason="TENSOR_DUPLICATE"
            )
        raise InvalidInput(
            f"{where}: unexpected tensor {name} for a {model.family} with {slots_text(model.layer_experts)} experts a "
            f"layer ({_variant(name, model)}); {_CURE}",
            reason="UNEXPECTED_TENSOR",
        )
    tied = {name for name, one in model.skeleton.items() if one.optional}
    for name in sorted(shapes.keys() - tensors.keys() - tied):
        hint = f" (config.json says {model.numbers.title})" if model.numbers else ""
        raise CorruptData(f"{where}: tensor {name} is missing{hint}; {_CURE}", reason="TENSOR_MISSING")


def _hint(tensor: TensorInfo, model: MoeModel, own: tuple[str, ...]) -> str:
    """What may be wrong about a tensor's dtype, for the end of a line."""
    if model.numbers is None:
        return "" if tensor.dtype in ("F64", "I64", "BOOL") else " (config.json has no quantization_config)"
    if own:
        return f" (config.json says {model.numbers.title})"
    first, *others = model.numbers.names(tensor.name)
    return f" ({' and '.join(others)} is missing)" if first == tensor.name else ""


def _variant(name: str, model: MoeModel) -> str:
    """Why a checkpoint may have a tensor that its model has not."""
    numbers = model.numbers
    if numbers is not None and any(name in numbers.names(router) for router in model.routers):
        return "routers must not be quantised; quantise the model without them"
    fused = {f"{prefix}.{field.fused}" for prefix in model.experts_memory for field in model.spec.fields}
    if numbers is not None and name in fused:
        return f"config.json says {numbers.title}, whose experts are stored one by one"
    if numbers is not None and name.startswith(model.experts_prefix) and name.endswith(".weight"):
        return f"config.json says {numbers.title}, so every weight of a routed expert must be stored so"
    if numbers is None and name.endswith(_QUANTISED):
        return "config.json has no quantization_config"
    return "variants of the family are not supported"


class _StoredExperts(NamedTuple):
    """A tensor that holds one expert's part of a field, or a layer's experts fused."""

    name: str
    field: ExpertField
    shape: tuple[int, ...]


def _stored_experts(tensors: Mapping[str, TensorInfo], model: MoeModel) -> Iterator[_StoredExperts]:
    """Every tensor that holds routed experts, fused where the checkpoint has a fused one."""
    for layer, count in enumerate(model.layer_experts):
        for field in model.fields:
            fused = next(iter(model.fused_names(layer, field)), "")
            if fused in tensors or field.fused in field.parts:
                yield _StoredExperts(fused, field, model.fused_shape(layer, field))
                continue
            parts = [one for one in model.expert_tensors if one.field == field.name]
            for expert in range(count):
                for part in parts:
                    yield _StoredExperts(model.expert_name(layer, expert, part), field, part.shape)
