"""Small safetensors codec over numpy: profiles, patterns and exemplars, without torch and without pickle.

Files come from object storage, so ``decode`` trusts nothing: every offset is checked against the shape, the
dtype and the file's length before a view is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TypeAlias

import blake3
import numpy as np
import numpy.typing as npt

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
_MAX_HEADER = 16 << 20


def encode(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file. Same content, same bytes: names are ordered by item size, then alphabet."""
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    parts: list[bytes] = []
    offset = 0
    for name, array in ordered:
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def decode(data: bytes, *, where: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Read what ``encode`` wrote: arrays (read-only views of ``data``) and metadata. Raises CorruptData."""
    header, start = _header(data, where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(where, "metadata is not a map of strings")
    arrays = {name: _view(data, start, name, entry, where) for name, entry in header.items()}
    if sum(array.nbytes for array in arrays.values()) != len(data) - start:
        raise _corrupt(where, "tensors do not cover the file exactly")
    return arrays, {str(name): str(value) for name, value in metadata.items()}


def digest(data: bytes) -> str:
    """Content id: lower-case hex blake3."""
    return blake3.blake3(data).hexdigest()


def _header(data: bytes, where: str) -> tuple[dict[str, object], int]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > _MAX_HEADER or 8 + size > len(data):
        raise _corrupt(where, "truncated, or not a safetensors file")
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError as error:
        raise _corrupt(where, "header is not JSON") from error
    if not isinstance(header, dict):
        raise _corrupt(where, "header is not a JSON object")
    return header, 8 + size


def _view(data: bytes, start: int, name: str, entry: object, where: str) -> Array:
    match entry:
        case {"dtype": str(dtype_name), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            dtype = _DTYPES.get(dtype_name)
        case _:
            raise _corrupt(where, f"entry of tensor {name!r} is malformed")
    if dtype is None:
        raise _corrupt(where, f"tensor {name!r} has unexpected dtype {dtype_name!r}")
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
        raise _corrupt(where, f"tensor {name!r} has a malformed shape")
    count = math.prod(shape)
    if not 0 <= begin <= end <= len(data) - start or end - begin != count * dtype.itemsize:
        raise _corrupt(where, f"offsets of tensor {name!r} do not fit its shape or the file")
    return np.frombuffer(data, dtype, count, start + begin).reshape(shape)


def _corrupt(where: str, what: str) -> CorruptData:
    return CorruptData(f"{where}: {what}", reason="ARRAYS_INVALID")
