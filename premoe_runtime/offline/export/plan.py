"""What every file of a cut checkpoint holds, worked out before a byte is read or written. Pure.

Files follow the pack: one of the output for each skeleton shard, with the rows of absent experts out of the routers,
and one for each MoE layer. Tensors are stored as the pack stores them, scales and all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from premoe_runtime.families.spec import ExpertField, MoeModel
from premoe_runtime.formats.manifest import BlobField, Manifest
from premoe_runtime.formats.safetensors import encode_header, tensor_bytes
from premoe_runtime.offline.export.cut import Cut
from premoe_runtime.packs import layout as lay
from premoe_runtime.packs.contents import TensorInfo

INDEX_FILE = "model.safetensors.index.json"


class Stored(NamedTuple):
    """A tensor of an output file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class SkeletonTensor:
    """A tensor of the pack's skeleton, whole, or of a router the rows ``experts`` along ``axis``."""

    stored: Stored
    source: TensorInfo
    experts: tuple[int, ...] | None = None
    axis: int = 0


@dataclass(frozen=True, slots=True)
class SkeletonFile:
    """The output of one skeleton shard, whose path in the pack is ``source``; tensors in the order of their data."""

    path: str
    source: str
    tensors: tuple[SkeletonTensor, ...]

    @property
    def stored(self) -> tuple[Stored, ...]:
        return tuple(one.stored for one in self.tensors)


@dataclass(frozen=True, slots=True)
class ExpertsFile:
    """The experts of one MoE layer one by one: of each, ``parts`` with their places in the blob, in this order."""

    path: str
    layer: int
    experts: tuple[int, ...]
    """Old numbers; the new ones count from 0."""
    parts: tuple[tuple[TensorInfo, ...], ...]

    @property
    def stored(self) -> tuple[Stored, ...]:
        return tuple(Stored(part.name, part.dtype, part.shape) for parts in self.parts for part in parts)


@dataclass(frozen=True, slots=True)
class FusedFile:
    """The experts of one MoE layer fused: of each field one tensor, [experts, ...]."""

    path: str
    layer: int
    experts: tuple[int, ...]
    fields: tuple[tuple[ExpertField, BlobField], ...]
    stored: tuple[Stored, ...]


class WeightsFile(Protocol):
    """Any safetensors file that is about to be written."""

    @property
    def path(self) -> str: ...

    @property
    def stored(self) -> tuple[Stored, ...]: ...


OutputFile: TypeAlias = SkeletonFile | ExpertsFile | FusedFile


def plan_files(
    manifest: Manifest, model: MoeModel, cut: Cut, skeleton: Mapping[str, Sequence[TensorInfo]]
) -> tuple[OutputFile, ...]:
    """Every safetensors file of the output, in the order of writing.

    ``model`` is the pack's; ``skeleton`` has the tensors of its skeleton shards, by their paths in the pack.
    """
    number = len(skeleton) + len(model.blocks)
    names = iter(f"model-{index + 1:05d}-of-{number:05d}.safetensors" for index in range(number))
    routers = _router_cuts(model, cut)
    files: list[OutputFile] = []
    for source, tensors in skeleton.items():
        ordered = sorted(tensors, key=lambda tensor: tensor.offset)
        files.append(SkeletonFile(next(names), source, tuple(_skeleton(one, routers) for one in ordered)))
    for layer in range(len(model.blocks)):
        files.append((_fused if model.spec.always_fused else _one_by_one)(manifest, model, cut, layer, next(names)))
    return tuple(files)


def header(file: WeightsFile) -> bytes:
    return encode_header(file.stored, {"format": "pt"})


def file_bytes(file: WeightsFile) -> int:
    return len(header(file)) + sum(one.num_bytes for one in file.stored)


def index(files: Sequence[WeightsFile]) -> dict[str, object]:
    """The content of ``model.safetensors.index.json``."""
    entries = [(one, file.path) for file in files for one in file.stored]
    return {
        "metadata": {"total_size": sum(one.num_bytes for one, _ in entries)},
        "weight_map": {one.name: path for one, path in sorted(entries)},
    }


def _router_cuts(model: MoeModel, cut: Cut) -> dict[str, tuple[tuple[int, ...], int]]:
    """Of every router's tensors, the rows that stay and the axis they lie along; none of a layer that stays whole."""
    return {
        name: (cut.experts(layer), axis)
        for layer, (weight, biases) in enumerate(zip(model.routers, model.router_biases, strict=True))
        if len(cut.experts(layer)) < model.layer_experts[layer]
        for name, axis in ((weight, 0), *((bias, -1) for bias in biases))
    }


def _skeleton(tensor: TensorInfo, routers: Mapping[str, tuple[tuple[int, ...], int]]) -> SkeletonTensor:
    if tensor.name not in routers:
        return SkeletonTensor(Stored(tensor.name, tensor.dtype, tensor.shape), tensor)
    experts, axis = routers[tensor.name]
    shape = list(tensor.shape)
    shape[axis] = len(experts)
    return SkeletonTensor(Stored(tensor.name, tensor.dtype, tuple(shape)), tensor, experts, axis)


def _one_by_one(manifest: Manifest, model: MoeModel, cut: Cut, layer: int, path: str) -> ExpertsFile:
    experts = cut.experts(layer)
    # Wider dtypes first, so that every tensor is aligned to its item size.
    parts = tuple(
        tuple(
            sorted(
                lay.expert_parts(model, manifest.layout, layer, number),
                key=lambda part: (-tensor_bytes(part.dtype, (1,)), part.offset),
            )
        )
        for number in range(len(experts))
    )
    return ExpertsFile(path, layer, experts, parts)


def _fused(manifest: Manifest, model: MoeModel, cut: Cut, layer: int, path: str) -> FusedFile:
    experts, places = cut.experts(layer), {field.name: field for field in manifest.layout.fields}
    fields = sorted(
        ((field, places[field.name]) for field in model.fields),
        key=lambda pair: (-tensor_bytes(pair[1].dtype, (1,)), pair[1].offset),
    )
    return FusedFile(path, layer, experts, tuple(fields), tuple(_fused_tensors(model, layer, len(experts), fields)))


def _fused_tensors(
    model: MoeModel, layer: int, experts: int, fields: Sequence[tuple[ExpertField, BlobField]]
) -> Iterator[Stored]:
    for field, place in fields:
        shape = model.fused_shape(layer, field)[1:]
        yield Stored(model.fused_names(layer, field)[-1], place.dtype, (experts, *shape))
