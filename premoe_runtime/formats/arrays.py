"""Named numpy arrays as safetensors files: profiles, patterns and exemplars, which come from object storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import blake3
import numpy as np
import numpy.typing as npt

from premoe_runtime.formats import safetensors
from premoe_runtime.formats.errors import CorruptData

Array: TypeAlias = npt.NDArray[np.generic]
F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
I64: TypeAlias = npt.NDArray[np.int64]
I16: TypeAlias = npt.NDArray[np.int16]
Mask: TypeAlias = npt.NDArray[np.bool_]

_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "I16": np.dtype("<i2"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def existing(layer_experts: Sequence[int] | I64) -> Mask:
    """bool[L, E]: which entries of a table over the experts of layers stand for one; E is of the one that has most."""
    return np.arange(max(layer_experts)) < np.array(layer_experts)[:, None]


def encode(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file. Same content, same bytes: names are ordered by item size, then alphabet."""
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    described = [(name, _NAMES[array.dtype.newbyteorder("<")], array.shape) for name, array in ordered]
    header = safetensors.encode_header(described, dict(sorted(metadata.items())))
    return b"".join([header, *(np.ascontiguousarray(array).tobytes() for _, array in ordered)])


def decode(data: bytes, *, where: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Read what ``encode`` wrote: arrays (read-only views of ``data``) and metadata. Raises CorruptData."""
    header = safetensors.parse_file(data, where=where)
    return {tensor.name: _view(data, tensor, where) for tensor in header.tensors}, dict(header.metadata)


def digest(data: bytes) -> str:
    """Content id: lower-case hex blake3."""
    return blake3.blake3(data).hexdigest()


def _view(data: bytes, tensor: safetensors.Tensor, where: str) -> Array:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise CorruptData(
            f"{where}: tensor {safetensors.shown(tensor.name)} has unexpected dtype {tensor.dtype}",
            reason="ARRAYS_INVALID",
        )
    count = tensor.num_bytes // dtype.itemsize
    return np.frombuffer(data, dtype, count, tensor.offset).reshape(tensor.shape)
