"""Hugging Face checkpoints as untrusted input: safetensors headers by ranged reads, shard index, strict checks.

Nothing here loads a whole shard or runs anything from the checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from premoe_runtime.families.base import MoeModel
from premoe_runtime.families.registry import parse_json_object, read_model, refuse_remote_code
from premoe_runtime.formats import safetensors
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.packs.impostors import START_BYTES, refuse_impostor, refuse_non_weights
from premoe_runtime.packs.source import is_skeleton_file
from premoe_runtime.storage import ObjectInfo, Store

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
WEIGHT_DTYPES = ("BF16", "F16", "F32")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MTP = re.compile(r"(model\.)?mtp\b.*")
_BLOCK = re.compile(r"model\.layers\.(\d+)\..*")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: ``offset`` from the start of ``file``, ``num_bytes`` of row-major data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint: every tensor that its family expects is there, with the right shape, exactly once."""

    store: Store
    config: bytes
    model: MoeModel
    dtype: str
    """dtype of the routed experts."""
    tensors: Mapping[str, TensorInfo]
    dropped: tuple[str, ...]
    """Names of multi-token-prediction tensors that are left out."""

    def skeleton(self) -> list[TensorInfo]:
        """Every tensor that is not a routed expert, by name."""
        return [self.tensors[name] for name in sorted(self.model.skeleton) if name in self.tensors]

    def expert(self, layer: int, expert: int) -> list[TensorInfo]:
        """One expert's tensors in the order of ``model.expert_tensors``."""
        names = (self.model.expert_name(layer, expert, tensor) for tensor in self.model.expert_tensors)
        return [self.tensors[name] for name in names]


def read_header(store: Store, path: str, size: int) -> list[TensorInfo]:
    """The tensors of one safetensors file of ``size`` bytes.

    Raises CorruptData (reason HEADER_INVALID) when the header lies about its length, about offsets or shapes, when
    tensors overlap or leave holes, and InvalidInput when the file is something else: a pickle or a zip archive
    (PICKLE_REFUSED), or what ``refuse_non_weights`` knows.
    """
    where = store.at(path)
    start = store.get_range(path, 0, min(START_BYTES, size))
    refuse_non_weights(start, where)
    if start.startswith(_PICKLE_MAGIC) and not _plausible_length(start, size):
        raise _pickle(where, "its content is a pickle or a zip archive")
    length = safetensors.header_length(start, size, where=where)
    header = safetensors.parse_header(store.get_range(path, 8, length), size, where=where)
    return [TensorInfo(one.name, one.dtype, one.shape, path, one.offset, one.num_bytes) for one in header.tensors]


def open_checkpoint(store: Store, files: Sequence[ObjectInfo]) -> Checkpoint:
    """Read config, index and all headers of a checkpoint whose folder is ``store``, and check them strictly.

    Raises NotFound (no config or weights), InvalidInput (unknown family, custom code, pickle, unexpected tensors)
    and CorruptData (headers, index, missing or misshapen tensors), naming the first fault.
    """
    sizes = {info.path: info.size for info in files}
    if "config.json" not in sizes:
        raise NotFound(f"{store.url}: no config.json; is this a checkpoint folder?", reason="CHECKPOINT_NOT_FOUND")
    for path in sorted(sizes):
        if is_skeleton_file(path) or path == INDEX_FILE:
            refuse_impostor(store.get_range(path, 0, min(START_BYTES, sizes[path])), store.at(path))
    config = store.get("config.json")
    model = read_model(config, store.at("config.json"))
    for path in sorted(sizes):
        if path.endswith(".json") and path not in ("config.json", INDEX_FILE):
            found = parse_json_object(store.get(path), store.at(path))
            if path == "tokenizer_config.json":
                refuse_remote_code(found, store.at(path))
    tensors = _read_tensors(store, sizes)
    dropped = _mtp_names(tensors, config, model)
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    dtype = _check_tensors(kept, model, store.url)
    return Checkpoint(store, config, model, dtype, kept, tuple(sorted(dropped)))


def _read_tensors(store: Store, sizes: Mapping[str, int]) -> dict[str, TensorInfo]:
    """All tensors of all shards by name, checked against the index."""
    index = _read_index(store) if INDEX_FILE in sizes else None
    shards = sorted(set(index.values())) if index is not None else [_single_shard(store, sizes)]
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        _check_shard_name(shard, store.at(INDEX_FILE))
        if shard not in sizes:
            raise CorruptData(f"{store.url}: shard {shard} is missing; download it again", reason="SHARD_MISSING")
        for tensor in read_header(store, shard, sizes[shard]):
            if tensor.name in tensors:
                raise CorruptData(
                    f"{store.url}: tensor {tensor.name} is in {tensors[tensor.name].file} and in {shard}",
                    reason="TENSOR_DUPLICATE",
                )
            tensors[tensor.name] = tensor
    if index is not None:
        _check_index(index, tensors, store.at(INDEX_FILE))
    return tensors


def _read_index(store: Store) -> dict[str, str]:
    where = store.at(INDEX_FILE)
    try:
        found = json.loads(store.get(INDEX_FILE), object_pairs_hook=safetensors.unique_keys)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{where} is not valid JSON: {error}", reason="INDEX_INVALID") from error
    index = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise CorruptData(f"{where} has no weight_map of tensor names to files", reason="INDEX_INVALID")
    return index


def _check_shard_name(shard: str, where: str) -> None:
    if shard.endswith(PICKLE_SUFFIXES):
        raise _pickle(where, f"it names {shard}")
    if "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
        raise InvalidInput(f"{where}: {shard!r} is no safetensors file of this folder", reason="SHARD_NAME")


def _check_index(index: Mapping[str, str], tensors: Mapping[str, TensorInfo], where: str) -> None:
    for name, file in sorted(index.items()):
        tensor = tensors.get(name)
        if tensor is None:
            raise CorruptData(
                f"{where}: tensor {name} is not in {file} nor in any other shard", reason="TENSOR_MISSING"
            )
        if tensor.file != file:
            raise CorruptData(
                f"{where}: tensor {name} should be in {file} but is in {tensor.file}; were shards swapped?",
                reason="SHARDS_SWAPPED",
            )
    for name in sorted(tensors.keys() - index.keys()):
        raise CorruptData(f"{where}: no entry for tensor {name} of {tensors[name].file}", reason="INDEX_INCOMPLETE")


def _single_shard(store: Store, sizes: Mapping[str, int]) -> str:
    shards = [path for path in sizes if path.endswith(".safetensors") and "/" not in path]
    if SINGLE_FILE in shards:
        return SINGLE_FILE
    if len(shards) == 1:
        return shards[0]
    if shards:
        raise CorruptData(
            f"{store.url}: {len(shards)} safetensors files but no {INDEX_FILE}; download it", reason="INDEX_MISSING"
        )
    for path in sorted(sizes):
        if path.endswith(PICKLE_SUFFIXES):
            raise _pickle(store.at(path), "its weights are pickled")
    raise NotFound(f"{store.url}: no safetensors weights in this folder", reason="CHECKPOINT_NOT_FOUND")


def _check_tensors(tensors: Mapping[str, TensorInfo], model: MoeModel, where: str) -> str:
    """Names, shapes and dtypes against the family's expectation; returns the experts' dtype."""
    experts = _expert_shapes(model)
    for name in sorted(tensors.keys() - model.skeleton.keys() - experts.keys()):
        raise InvalidInput(
            f"{where}: unexpected tensor {name} for a {model.family} with {model.num_experts} experts a layer "
            f"(fused shared experts and other variants are not supported)",
            reason="UNEXPECTED_TENSOR",
        )
    required = [name for name, spec in model.skeleton.items() if not spec.optional]
    for name in sorted((experts.keys() | required) - tensors.keys()):
        raise CorruptData(f"{where}: tensor {name} is missing", reason="TENSOR_MISSING")
    for name, tensor in sorted(tensors.items()):
        shape = experts[name] if name in experts else model.skeleton[name].shape
        if tensor.shape != shape:
            raise CorruptData(
                f"{where}: tensor {name} has shape {list(tensor.shape)}, config.json says {list(shape)}",
                reason="TENSOR_SHAPE",
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            raise InvalidInput(
                f"{where}: tensor {name} has dtype {tensor.dtype}; supported: {', '.join(WEIGHT_DTYPES)}",
                reason="DTYPE_UNSUPPORTED",
            )
    return _one_dtype(experts, tensors, where)


def _expert_shapes(model: MoeModel) -> dict[str, tuple[int, int]]:
    return {
        model.expert_name(layer, expert, tensor): tensor.shape
        for layer in range(len(model.blocks))
        for expert in range(model.num_experts)
        for tensor in model.expert_tensors
    }


def _one_dtype(names: Iterable[str], tensors: Mapping[str, TensorInfo], where: str) -> str:
    first, *others = sorted(names)
    dtype = tensors[first].dtype
    for name in others:
        if tensors[name].dtype != dtype:
            raise InvalidInput(
                f"{where}: routed experts of two dtypes: {first} is {dtype}, {name} is {tensors[name].dtype}",
                reason="DTYPE_UNSUPPORTED",
            )
    return dtype


def _mtp_names(tensors: Iterable[str], config: bytes, model: MoeModel) -> frozenset[str]:
    """Multi-token-prediction tensors, by name: ``mtp.*``, or blocks after the last when the config declares some."""
    fields = parse_json_object(config, "config.json")
    blocks, extra = fields.get("num_hidden_layers"), fields.get("num_nextn_predict_layers") or 0
    if not isinstance(blocks, int) or not isinstance(extra, int):
        raise InvalidInput("config.json: num_nextn_predict_layers is no number", reason="CONFIG_INVALID")
    found = set()
    for name in tensors:
        block = _BLOCK.fullmatch(name)
        if _MTP.fullmatch(name) or (block is not None and blocks <= int(block[1]) < blocks + extra):
            found.add(name)
    return frozenset(found)


def _plausible_length(start: bytes, size: int) -> bool:
    """A real header may begin with these bytes by chance: its length is then a small number that fits the file."""
    return len(start) >= 8 and int.from_bytes(start[:8], "little") + 8 <= min(size, safetensors.MAX_HEADER_BYTES)


def _pickle(where: str, why: str) -> InvalidInput:
    return InvalidInput(f"{where}: {why}; pickled weights are never read, give safetensors", reason="PICKLE_REFUSED")
