"""A model whose weights are stored in a number format: its tensors, in blobs and skeleton, and what they make."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple, TypeAlias

from premoe_runtime.families.spec import ExpertField, FamilySpec, MoeModel, SkeletonTensor
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import DTYPE_BYTES
from premoe_runtime.numbers.spec import NumberFormat

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


class HeldField(NamedTuple):
    """How a field that a kernel reads comes out of a blob.

    ``weights``: of the weights that lie in it, one above the other, the blob fields that stand for each. ``turns``: so
    many parts' rows take turns in what they make.
    """

    name: str
    weights: tuple[tuple[str, ...], ...]
    turns: int = 1


def held_fields(spec: FamilySpec, numbers: NumberFormat) -> tuple[HeldField, ...]:
    """Of every field of the family; those that are not stored in the format lie in the blob under their own name."""
    return tuple(
        HeldField(field.name, tuple(numbers.names(name) for name in _weights(field, numbers)), _turns(field, numbers))
        for field in spec.fields
    )


def _weights(field: ExpertField, numbers: NumberFormat) -> tuple[str, ...]:
    return (field.fused,) if numbers.experts_only else field.parts


def _turns(field: ExpertField, numbers: NumberFormat) -> int:
    return len(field.parts) if numbers.experts_only and field.interleaved else 1


def stored_fields(spec: FamilySpec, numbers: NumberFormat, shapes: Shapes) -> tuple[tuple[ExpertField, ...], Shapes]:
    """The fields of blobs that hold experts as this format stores them, and their shapes.

    ``shapes``: one expert's of every field of the family. Raises InvalidInput (NUMBERS_UNSUPPORTED).
    """
    fields: list[ExpertField] = []
    found: dict[str, tuple[int, ...]] = {}
    for field in spec.fields:
        rows, *rest = shapes[field.name]
        if not rest:  # a bias
            fields.append(field)
            found[field.name] = shapes[field.name]
            continue
        weights = _weights(field, numbers)
        if not numbers.experts_only and not all(name.endswith(".weight") for name in weights):
            raise InvalidInput(
                f"{spec.name} stores its experts fused, for which {numbers.title} has no tensors; "
                "give the checkpoint in bf16, fp16 or fp32",
                reason="NUMBERS_UNSUPPORTED",
            )
        for weight in weights:
            for one in numbers.tensors(weight, (rows // len(weights), *rest)):
                fused = one.name if numbers.experts_only else ""
                fields.append(ExpertField(one.name, fused=fused, parts=(one.name,), dtypes=one.dtypes))
                found[one.name] = one.shape
    return tuple(fields), found


def experts_converted(spec: FamilySpec, numbers: NumberFormat, experts: Sequence[str], where: str) -> bool:
    """Whether the config says that experts of these names on disk are stored in the format.

    Raises InvalidInput (NUMBERS_UNSUPPORTED) where it says so of some only: all blobs have one layout.
    """
    parts = [part.rpartition(".")[0] for field in spec.fields for part in field.parts]
    modules = experts if numbers.experts_only else [f"{name}.0.{part}" for name in experts for part in parts]
    said = {name: numbers.converts(name) for name in modules}
    if len(set(said.values())) > 1:
        first = min(name for name, converted in said.items() if not converted)
        raise InvalidInput(
            f"{where}: quantization_config leaves {first} alone, but not the experts of all layers; "
            "quantise all routed experts, or none",
            reason="NUMBERS_UNSUPPORTED",
        )
    return all(said.values())


def as_stored(model: MoeModel, names: Collection[str]) -> MoeModel:
    """The model with those weights of its skeleton in its number format of which tensors of these names are there."""

    def there(numbers: NumberFormat, name: str, known: SkeletonTensor) -> bool:
        own = {*numbers.names(name), *numbers.names(known.memory)} - {name, known.memory}
        return any(one in names for one in own)

    return _stored(model, there)


def every_stored(model: MoeModel) -> MoeModel:
    """The model with every weight of its skeleton in its number format that may be in it."""
    return _stored(model, _fits)


def as_configured(model: MoeModel) -> MoeModel:
    """The model with those weights of its skeleton in its number format that its config means: all that it can say."""

    def meant(numbers: NumberFormat, name: str, known: SkeletonTensor) -> bool:
        return known.linear and numbers.converts(name.removesuffix(".weight")) and _fits(numbers, name, known)

    return _stored(model, meant)


def _fits(numbers: NumberFormat, name: str, known: SkeletonTensor) -> bool:
    """Whether the format can have a weight of this shape; tools leave those alone that it cannot."""
    try:
        return bool(numbers.tensors(name, known.shape))
    except InvalidInput:
        return False


def _stored(model: MoeModel, chosen: Callable[[NumberFormat, str, SkeletonTensor], bool]) -> MoeModel:
    numbers = model.numbers
    if numbers is None or numbers.experts_only:
        return model
    skeleton: dict[str, SkeletonTensor] = {}
    for name, known in model.skeleton.items():
        matrix = len(known.shape) == 2 and name.endswith(".weight") and name not in model.routers and not known.makes
        if not matrix or not chosen(numbers, name, known):
            skeleton[name] = known
            continue
        for one, memory in zip(numbers.tensors(name, known.shape), numbers.names(known.memory), strict=True):
            skeleton[one.name] = replace(
                known, memory=memory, shape=one.shape, dtypes=one.dtypes, makes=known.memory, linear=False
            )
    return replace(model, skeleton=skeleton)


def skeleton_bytes(model: MoeModel, dtype: str) -> int:
    """Bytes of the skeleton as the model has it, its plain tensors in ``dtype``; tied tensors count once."""
    return sum(
        prod(one.shape) * DTYPE_BYTES[one.dtypes[0] if one.dtypes else "F32" if one.float32 else dtype]
        for one in model.skeleton.values()
        if not one.optional
    )
