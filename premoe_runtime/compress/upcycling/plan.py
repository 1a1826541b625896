"""What every file of an upcycled checkpoint holds, worked out from headers before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from premoe_runtime.compress.upcycling.siblings import Upcycling, moe_config, sibling_of
from premoe_runtime.families.registry import parse_json_object, read_model, refuse_remote_code
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.families.stock import refusals
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.offline.export.plan import Stored
from premoe_runtime.packs.checkpoint import INDEX_FILE, read_header, read_index, single_shard
from premoe_runtime.packs.contents import WEIGHT_DTYPES, TensorInfo, match
from premoe_runtime.packs.source import Source

Part = Literal["gate", "up", "down", "router"]
PARTS: tuple[Part, ...] = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor of the output: a dense one as it is, or of ``layer`` a router, or an expert's part of ``source``."""

    stored: Stored
    source: TensorInfo | None
    layer: int = -1
    part: Part | None = None
    expert: int = -1


@dataclass(frozen=True, slots=True)
class File:
    """One safetensors file; tensors in the order of their data."""

    path: str
    tensors: tuple[Made, ...]

    @property
    def stored(self) -> tuple[Stored, ...]:
        return tuple(one.stored for one in self.tensors)


@dataclass(frozen=True, slots=True)
class Planned:
    """An upcycled checkpoint: its config, its model, its files in the order of writing."""

    what: Upcycling
    config: bytes
    model: MoeModel
    files: tuple[File, ...]


def plan(source: Source, what: Upcycling) -> Planned:
    """Read config and headers of a dense checkpoint and say what it becomes.

    Raises what ``sibling_of`` raises, InvalidInput and CorruptData for configs and tensors that are not those of its
    family, NotFound where there is no checkpoint.
    """
    store, where = source.store, source.store.at("config.json")
    data = parse_json_object(store.get("config.json"), where)
    refuse_remote_code(data, where)
    sibling = sibling_of(data, where)
    with refusals("config", where):
        dense = CONFIG_MAPPING[str(data["model_type"])].from_dict(dict(data))
        width, hidden = int(dense.intermediate_size), int(dense.hidden_size)
    if width % what.split or (width // what.split) % 8:
        raise InvalidInput(
            f"--split {what.split}: {width} neurons do not make that many parts of a multiple of 8, which kernels need",
            reason="UPCYCLING_INVALID",
        )
    config = json.dumps(moe_config(data, dense.to_dict(), width, what, sibling), indent=2).encode() + b"\n"
    model = read_model(config, where)
    tensors = _tensors(source)
    mlps = [_mlp(tensors, block, (width, hidden), store.url) for block in model.blocks]
    files = _files(tensors, mlps, model, what)
    made = {one.stored.name: _info(one, file.path) for file in files for one in file.tensors}
    match(made, model, 0, store.url)
    return Planned(what, config, model, files)


def _tensors(source: Source) -> dict[str, TensorInfo]:
    store, sizes = source.store, {info.path: info.size for info in source.files}
    shards = sorted(set(read_index(store).values())) if INDEX_FILE in sizes else [single_shard(store, sizes)]
    for shard in shards:
        if shard not in sizes:
            raise CorruptData(f"{store.url}: shard {shard} is missing; download it again", reason="SHARD_MISSING")
    return {one.name: one for shard in shards for one in read_header(store, shard, sizes[shard])}


def _mlp(tensors: Mapping[str, TensorInfo], block: int, shape: tuple[int, int], where: str) -> dict[Part, TensorInfo]:
    """A block's MLP: gate and up [I, H], down [H, I]."""
    found = dict[Part, TensorInfo]()
    for part in PARTS:
        name, wanted = f"model.layers.{block}.mlp.{part}_proj.weight", shape if part != "down" else shape[::-1]
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != wanted or tensor.dtype not in WEIGHT_DTYPES:
            found_as = "missing" if tensor is None else f"{tensor.dtype}{list(tensor.shape)}"
            raise CorruptData(
                f"{where}: {name} is {found_as}, not a 16 or 32 bit {list(wanted)}; download it again",
                reason="TENSOR_MISSING" if tensor is None else "TENSOR_SHAPE",
            )
        found[part] = tensor
    return found


def _files(
    tensors: Mapping[str, TensorInfo], mlps: list[dict[Part, TensorInfo]], model: MoeModel, what: Upcycling
) -> tuple[File, ...]:
    taken = {one.name for mlp in mlps for one in mlp.values()}
    shards = dict[str, list[TensorInfo]]()
    for tensor in sorted(tensors.values(), key=lambda one: (one.file, one.offset)):
        if tensor.name not in taken:
            shards.setdefault(tensor.file, []).append(tensor)
    held = [tuple(Made(Stored(one.name, one.dtype, one.shape), one) for one in shard) for shard in shards.values()]
    held += [tuple(_layer(mlp, layer, model, what)) for layer, mlp in enumerate(mlps)]
    names = [f"model-{number + 1:05d}-of-{len(held):05d}.safetensors" for number in range(len(held))]
    return tuple(File(name, made) for name, made in zip(names, held, strict=True))


def _layer(mlp: Mapping[Part, TensorInfo], layer: int, model: MoeModel, what: Upcycling) -> list[Made]:
    """A layer's router, then all experts' gates, ups and downs, so that each dense tensor is read once."""
    router = Stored(model.routers[layer], mlp["gate"].dtype, (what.experts, model.hidden_size))
    made = [Made(router, None, layer, "router")]
    names = dict(zip(PARTS, model.expert_tensors, strict=True))
    for part, tensor in names.items():
        for expert in range(what.experts):
            stored = Stored(model.expert_name(layer, expert, tensor), mlp[part].dtype, tensor.shape)
            made.append(Made(stored, mlp[part], layer, part, expert))
    return made


def _info(one: Made, path: str) -> TensorInfo:
    return TensorInfo(one.stored.name, one.stored.dtype, one.stored.shape, path, 0, one.stored.num_bytes)
