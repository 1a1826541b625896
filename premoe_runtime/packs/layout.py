"""Where bytes lie in a pack: blob layout, file headers, skeleton shards. Pure functions (DESIGN section 5)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod

import blake3

from premoe_runtime.families.base import MoeModel
from premoe_runtime.formats.manifest import BLOB_ALIGNMENT, DTYPE_BYTES, FIELD_ALIGNMENT, BlobField, BlobLayout
from premoe_runtime.formats.safetensors import encode_header
from premoe_runtime.packs.checkpoint import TensorInfo

PIECE_BYTES = 1_048_512  # 1 MiB less 64: a Redis value of this size stays within one allocator class
SHARD_BYTES = 1 << 30
CHECKS_FILE = "checks.safetensors"
MANIFEST_FILE = "manifest.json"


def align(value: int, to: int) -> int:
    """``value`` rounded up to a multiple of ``to``."""
    return -(-value // to) * to


def blob_layout(model: MoeModel, dtype: str) -> BlobLayout:
    """Fields one after another at multiples of 256, the blob's end at a multiple of 4096."""
    rows: dict[str, tuple[int, int]] = {}
    for tensor in model.expert_tensors:
        height, width = rows.get(tensor.field, (0, tensor.shape[1]))
        rows[tensor.field] = (max(height, tensor.row + tensor.shape[0]), width)
    fields: list[BlobField] = []
    end = 0
    for name, shape in rows.items():
        field = BlobField(name=name, dtype=dtype, shape=shape, offset=align(end, FIELD_ALIGNMENT))
        fields.append(field)
        end = field.offset + field.num_bytes
    return BlobLayout(fields=tuple(fields), blob_bytes=align(end, BLOB_ALIGNMENT))


def blob_places(model: MoeModel, layout: BlobLayout) -> tuple[tuple[int, int], ...]:
    """``(offset, num_bytes)`` inside the blob of each of ``model.expert_tensors``."""
    fields = {field.name: field for field in layout.fields}
    places = []
    for tensor in model.expert_tensors:
        field = fields[tensor.field]
        item = DTYPE_BYTES[field.dtype]
        places.append((field.offset + tensor.row * field.shape[1] * item, prod(tensor.shape) * item))
    return tuple(places)


def expert_file_header(num_experts: int, blob_bytes: int) -> bytes:
    """Header of ``experts/layer-*.safetensors``: one U8 tensor per expert; a multiple of 4096 bytes long."""
    blobs = [(f"expert.{expert:05d}", "U8", (blob_bytes,)) for expert in range(num_experts)]
    return encode_header(blobs, alignment=BLOB_ALIGNMENT)


def layer_file(layer: int) -> str:
    """Path of a MoE layer's file inside a pack."""
    return f"experts/layer-{layer:03d}.safetensors"


def pieces_per_blob(blob_bytes: int) -> int:
    return -(-blob_bytes // PIECE_BYTES)


def skeleton_shards(tensors: Sequence[TensorInfo], limit: int = SHARD_BYTES) -> list[list[TensorInfo]]:
    """Split tensors, by name, into shards of at most ``limit`` bytes (more only for a single larger tensor).

    Within a shard wider dtypes come first, so that every tensor is aligned to its item size. The result depends on
    names, shapes and dtypes only, not on how the source was sharded.
    """
    shards: list[list[TensorInfo]] = []
    size = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        if not shards or size + tensor.num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    return [sorted(shard, key=lambda tensor: (-DTYPE_BYTES[tensor.dtype], tensor.name)) for shard in shards]


def shard_file(index: int, count: int) -> str:
    return f"skeleton/model-{index + 1:05d}-of-{count:05d}.safetensors"


def weights_id(tensors: Mapping[str, TensorInfo], digests: Mapping[str, str]) -> str:
    """blake3 over (name, dtype, shape, blake3 of the data) of every tensor, by name: free of sharding and layout."""
    whole = blake3.blake3()
    for name in sorted(digests):
        tensor = tensors[name]
        line = json.dumps([name, tensor.dtype, list(tensor.shape), digests[name]], separators=(",", ":"))
        whole.update(line.encode() + b"\n")
    return whole.hexdigest()
