"""Where bytes lie in a pack: blob layout, file headers, skeleton shards. Pure functions (DESIGN section 5)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod

import blake3
import numpy as np

from premoe_runtime.families.spec import ExpertField, MoeModel
from premoe_runtime.formats.manifest import BLOB_ALIGNMENT, DTYPE_BYTES, FIELD_ALIGNMENT, BlobField, BlobLayout
from premoe_runtime.formats.safetensors import encode_header
from premoe_runtime.packs.contents import TensorInfo

SHARD_BYTES = 1 << 30
CHECKS_FILE = "checks.safetensors"


def align(value: int, to: int) -> int:
    """``value`` rounded up to a multiple of ``to``."""
    return -(-value // to) * to


def blob_layout(model: MoeModel, dtype: str, found: Mapping[str, str] | None = None) -> BlobLayout:
    """Fields one after another at multiples of 256, the blob's end at a multiple of 4096.

    ``dtype`` is that of fields that have none of their own; ``found`` says which of theirs the others have.
    """
    fields: list[BlobField] = []
    end = 0
    for spec in model.fields:
        shape, offset = model.shapes[spec.name], align(end, FIELD_ALIGNMENT)
        own = (found or {}).get(spec.name) or next(iter(spec.dtypes), dtype)
        fields.append(BlobField(name=spec.name, dtype=own, shape=shape, offset=offset))
        end = offset + fields[-1].num_bytes
    return BlobLayout(fields=tuple(fields), blob_bytes=align(end, BLOB_ALIGNMENT))


def expert_parts(model: MoeModel, layout: BlobLayout, layer: int, expert: int) -> list[TensorInfo]:
    """One expert's canonical tensors, whatever form its checkpoint had; ``offset`` is that inside its blob."""
    fields = {field.name: field for field in layout.fields}
    found = []
    for one in model.expert_tensors:
        field = fields[one.field]
        row = DTYPE_BYTES[field.dtype] * prod(one.shape[1:])
        name, offset = model.expert_name(layer, expert, one), field.offset + one.row * row
        found.append(TensorInfo(name, field.dtype, one.shape, layer_file(layer), offset, one.shape[0] * row))
    return found


def straighten(spec: ExpertField, field: BlobField, data: bytes | bytearray) -> bytes:
    """One expert's piece of a fused tensor as its blob holds it: rows by columns, one part above the other."""
    items = np.frombuffer(data, dtype=f"V{DTYPE_BYTES[field.dtype]}")
    rows = items.reshape(field.shape[::-1]).T if spec.transposed else items.reshape(field.shape)
    if spec.interleaved:
        rows = np.concatenate([rows[part :: len(spec.parts)] for part in range(len(spec.parts))])
    return rows.tobytes()


def fused(spec: ExpertField, field: BlobField, data: bytes | bytearray | memoryview) -> bytes:
    """The opposite of ``straighten``: one expert's field of a blob as its piece of the family's fused tensor."""
    rows = np.frombuffer(data, dtype=f"V{DTYPE_BYTES[field.dtype]}").reshape(field.shape)
    if spec.interleaved:
        rows = np.stack(np.split(rows, len(spec.parts)), axis=1).reshape(field.shape)
    return (rows.T if spec.transposed else rows).tobytes()


def expert_file_header(num_experts: int, blob_bytes: int) -> bytes:
    """Header of ``experts/layer-*.safetensors``: one U8 tensor per expert; a multiple of 4096 bytes long."""
    blobs = [(f"expert.{expert:05d}", "U8", (blob_bytes,)) for expert in range(num_experts)]
    return encode_header(blobs, alignment=BLOB_ALIGNMENT)


def layer_file(layer: int) -> str:
    """Path of a MoE layer's file inside a pack."""
    return f"experts/layer-{layer:03d}.safetensors"


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
    """blake3 over (name, dtype, shape, blake3 of the data) of every canonical tensor, by name.

    Free of sharding, of layout, and of the form that experts were stored in.
    """
    whole = blake3.blake3()
    for name in sorted(digests):
        tensor = tensors[name]
        line = json.dumps([name, tensor.dtype, list(tensor.shape), digests[name]], separators=(",", ":"))
        whole.update(line.encode() + b"\n")
    return whole.hexdigest()
