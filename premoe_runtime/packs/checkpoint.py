"""Hugging Face checkpoints as untrusted input: safetensors headers by ranged reads, shard index, strict checks.

Nothing here loads a whole shard or runs anything from the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from premoe_runtime.families.registry import (
    as_stock,
    check_generation,
    parse_json_object,
    read_model,
    refuse_remote_code,
)
from premoe_runtime.families.spec import ExpertField, MoeModel
from premoe_runtime.families.stored import as_stored
from premoe_runtime.formats import safetensors
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.numbers.spec import ZEROS
from premoe_runtime.packs.consistency import unlikely_dtype
from premoe_runtime.packs.contents import (
    LeftOut,
    TensorInfo,
    computed_dtype,
    experts_dtypes,
    match,
    stored_names,
    with_experts_found,
)
from premoe_runtime.packs.impostors import START_BYTES, refuse_impostor, refuse_non_weights
from premoe_runtime.packs.ranges import read_ahead
from premoe_runtime.packs.source import is_skeleton_file
from premoe_runtime.storage import ObjectInfo, Store

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ZEROS_AHEAD = 8
"""Small reads at a time, which cost a store's answer each."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_CURE = "download it again"
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class FieldSource:
    """Where one field of one expert's blob lies: ranges one after another, then the field's transform."""

    field: ExpertField
    ranges: tuple[TensorInfo, ...]
    fused: bool
    """The ranges are one piece of a fused tensor, which may be transposed or interleaved."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint: every tensor that its family expects is there, with the right shape, exactly once.

    ``tensors``: the skeleton's by their canonical names, the experts' as they are stored, one by one or fused.
    """

    store: Store
    config: bytes
    """As stock classes read it: the file, but for another name of its family."""
    model: MoeModel
    dtype: str
    """What the routed experts are computed in."""
    dtypes: Mapping[str, str]
    """What every field of theirs is stored in."""
    tensors: Mapping[str, TensorInfo]
    dropped: tuple[LeftOut, ...]

    def skeleton(self) -> list[TensorInfo]:
        """Every tensor that is not a routed expert, by name."""
        return [self.tensors[name] for name in sorted(self.model.skeleton) if name in self.tensors]

    def expert(self, layer: int, expert: int) -> list[FieldSource]:
        """Where one expert's fields lie, in the order of the family's fields."""
        return [self._source(layer, expert, field) for field in self.model.fields]

    def _source(self, layer: int, expert: int, field: ExpertField) -> FieldSource:
        whole = self.tensors.get(next(iter(self.model.fused_names(layer, field)), ""))
        if whole is not None:
            size = whole.num_bytes // self.model.layer_experts[layer]
            part = replace(whole, shape=whole.shape[1:], offset=whole.offset + expert * size, num_bytes=size)
            return FieldSource(field, (part,), fused=True)
        prefix = self.model.experts_prefix[layer]
        parts = (self.tensors[f"{prefix}.{expert}.{part}"] for part in field.parts)
        return FieldSource(field, tuple(parts), fused=False)


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
    sizes = {info.path: info.size for info in files if not is_side_file(info.path)}
    side = [LeftOut(info.path, "side file of an operating system") for info in files if is_side_file(info.path)]
    if "config.json" not in sizes:
        raise NotFound(f"{store.url}: no config.json; is this a checkpoint folder?", reason="CHECKPOINT_NOT_FOUND")
    for path in sorted(sizes):
        if is_skeleton_file(path) or path == INDEX_FILE:
            refuse_impostor(store.get_range(path, 0, min(START_BYTES, sizes[path])), store.at(path))
    config = _stock_config(store)
    model = read_model(config, store.at("config.json"))
    if parse_json_object(config, store.at("config.json")).get("auto_map"):
        side.append(LeftOut("auto_map of config.json", "code of the checkpoint, which is never run"))
    for path in sorted(sizes):
        if path.endswith(".json") and path not in ("config.json", INDEX_FILE):
            found = parse_json_object(store.get(path), store.at(path))
            if path.endswith("config.json"):  # a vocabulary may well have such a word
                refuse_remote_code(found, store.at(path))
            if path == "generation_config.json":
                check_generation(found, store.at(path))
    model, tensors, stale = _read_tensors(store, sizes, model)
    kept, needless = match(tensors, model, _predicted_blocks(config, store.at("config.json")), store.url)
    _check_zeros(store, [tensors[name] for name, why in needless if why == ZEROS])
    left_out = (*side, *(LeftOut(name, "stale entry of the index") for name in stale), *needless)
    dtypes = experts_dtypes(kept, model, store.url)
    checkpoint = Checkpoint(store, config, model, computed_dtype(dtypes, model), dtypes, kept, left_out)
    if unlikely := unlikely_dtype(checkpoint.dtype, model, checkpoint.skeleton()):
        raise InvalidInput(f"{store.url}: {unlikely}; make them agree", reason="DTYPE_UNSUPPORTED")
    return checkpoint


def _check_zeros(store: Store, tensors: Sequence[TensorInfo]) -> None:
    """Raise InvalidInput (UNEXPECTED_TENSOR) for one with a byte that is not zero. Reads all of them."""
    contents = read_ahead(tensors, lambda one: store.get_range(one.file, one.offset, one.num_bytes), ZEROS_AHEAD)
    for tensor, data in zip(tensors, contents, strict=True):
        if any(data):
            raise InvalidInput(
                f"{store.url}: unexpected tensor {tensor.name}, which is not zero (its layer has no bias)",
                reason="UNEXPECTED_TENSOR",
            )


def _stock_config(store: Store) -> bytes:
    config = store.get("config.json")
    data = parse_json_object(config, store.at("config.json"))
    known = as_stock(data)
    return config if known == data else json.dumps(known, indent=2, sort_keys=True).encode()


def is_side_file(path: str) -> bool:
    """Files that operating systems put beside others: ``.DS_Store``, ``._model.safetensors``, ``__MACOSX/``."""
    return path.rpartition("/")[2].startswith(".") or path.startswith("__MACOSX/")


def _predicted_blocks(config: bytes, where: str) -> int:
    """How many blocks of multi-token prediction follow the last block."""
    extra = parse_json_object(config, where).get("num_nextn_predict_layers") or 0
    if not isinstance(extra, int):
        raise InvalidInput(f"{where}: num_nextn_predict_layers is no number; correct it", reason="CONFIG_INVALID")
    return extra


def _read_tensors(
    store: Store, sizes: Mapping[str, int], model: MoeModel
) -> tuple[MoeModel, dict[str, TensorInfo], list[str]]:
    """All tensors of all shards by name, checked against the index; then entries of it that nothing needs.

    First of all the model, with as many experts in each layer as these tensors say.
    """
    index = read_index(store) if INDEX_FILE in sizes else None
    wanted: Set[str] = stored_names(as_stored(model, index or ())).keys()
    stale = {name for name, file in (index or {}).items() if name not in wanted and file not in sizes}
    entries = {name: file for name, file in (index or {}).items() if name not in stale}
    shards = sorted(set(entries.values())) if index is not None else [single_shard(store, sizes)]
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        _check_shard_name(shard, store.at(INDEX_FILE))
        if shard not in sizes:
            raise CorruptData(f"{store.url}: shard {shard} is missing; download it again", reason="SHARD_MISSING")
        for tensor in read_header(store, shard, sizes[shard]):
            if tensor.name in tensors:
                raise CorruptData(
                    f"{store.url}: tensor {tensor.name} is in {tensors[tensor.name].file} and in {shard}; {_CURE}",
                    reason="TENSOR_DUPLICATE",
                )
            tensors[tensor.name] = tensor
    model = with_experts_found(as_stored(model, tensors), tensors, store.url)
    if index is not None:
        wanted = stored_names(model).keys()
        stale |= entries.keys() - wanted - tensors.keys()
        _check_index({name: entries[name] for name in entries.keys() - stale}, tensors, wanted, store)
    return model, tensors, sorted(stale)


def read_index(store: Store) -> dict[str, str]:
    """File of every tensor, as the index says. Raises CorruptData (INDEX_INVALID)."""
    where = store.at(INDEX_FILE)
    try:
        found = json.loads(store.get(INDEX_FILE), object_pairs_hook=safetensors.unique_keys)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{where} is not valid JSON: {error}; {_CURE}", reason="INDEX_INVALID") from error
    index = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise CorruptData(f"{where} has no weight_map of tensor names to files; {_CURE}", reason="INDEX_INVALID")
    return index


def _check_shard_name(shard: str, where: str) -> None:
    if shard.endswith(PICKLE_SUFFIXES):
        raise _pickle(where, f"it names {shard}")
    if "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
        raise InvalidInput(f"{where}: {shard!r} is no safetensors file of this folder", reason="SHARD_NAME")


def _check_index(index: Mapping[str, str], tensors: Mapping[str, TensorInfo], wanted: Set[str], store: Store) -> None:
    where = store.at(INDEX_FILE)
    for name, file in sorted(index.items()):
        tensor = tensors.get(name)
        if tensor is None:
            raise CorruptData(
                f"{where}: tensor {name} is not in {file} nor in any other shard; {_CURE}", reason="TENSOR_MISSING"
            )
        if tensor.file != file:
            raise CorruptData(
                f"{where}: tensor {name} should be in {file} but is in {tensor.file}; were shards swapped?",
                reason="SHARDS_SWAPPED",
            )
    for name in sorted((tensors.keys() & wanted) - index.keys()):
        raise CorruptData(
            f"{where}: no entry for tensor {name} of {tensors[name].file}; {_CURE}", reason="INDEX_INCOMPLETE"
        )


def single_shard(store: Store, sizes: Mapping[str, int]) -> str:
    """The one file of a checkpoint without an index. Raises CorruptData, NotFound, InvalidInput for pickles."""
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


def _plausible_length(start: bytes, size: int) -> bool:
    """A real header may begin with these bytes by chance: its length is then a small number that fits the file."""
    return len(start) >= 8 and int.from_bytes(start[:8], "little") + 8 <= min(size, safetensors.MAX_HEADER_BYTES)


def _pickle(where: str, why: str) -> InvalidInput:
    return InvalidInput(f"{where}: {why}; pickled weights are never read, give safetensors", reason="PICKLE_REFUSED")
