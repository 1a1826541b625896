"""The safetensors file format, for everything that reads or writes it; no torch, no pickle, nothing is run.

A file is 8 bytes of little-endian header length, a JSON header, and the tensors' data without gaps
(https://github.com/huggingface/safetensors#format). Headers are untrusted: every length, shape and offset is checked
against the file's size before anything is read or allocated by it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeGuard

from premoe_runtime.formats.errors import CorruptData

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
MAX_ELEMENTS = 1 << 56
"""Bound of a shape's product, zeros counted as ones: what exceeds it overflows other libraries' 64-bit arithmetic."""
MAX_DIMENSIONS = 16
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: ``num_bytes`` of row-major data at ``offset`` from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself; ``tensors`` are in the header's order."""

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor's data; ``dtype`` must be known."""
    return prod(shape) * DTYPE_BITS[dtype] // 8


def encode_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None, alignment: int = 8
) -> bytes:
    """Header of a file that holds ``(name, dtype, shape)`` in this order; data start at a multiple of ``alignment``."""
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + tensor_bytes(dtype, shape)
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


def header_length(start: bytes, size: int, *, where: str) -> int:
    """Bytes of the JSON header of a file of ``size`` bytes that begins with ``start``. Raises CorruptData."""
    if len(start) < 8:
        raise _corrupt(where, f"the file has only {size} bytes")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _corrupt(where, f"the header claims {length} bytes, more than the limit of {MAX_HEADER_BYTES}")
    if 8 + length > size:
        raise _corrupt(where, f"the header claims {length} bytes, the file has {size}: truncated or corrupt")
    return length


def parse_file(data: bytes, *, where: str) -> Header:
    """The header of a whole file in memory. Raises CorruptData like ``parse_header``."""
    length = header_length(data[:8], len(data), where=where)
    return parse_header(data[8 : 8 + length], len(data), where=where)


def parse_header(header: bytes, size: int, *, where: str) -> Header:
    """Check a JSON header against the ``size`` of its file.

    Raises CorruptData (reason HEADER_INVALID): no JSON object, a name twice, unknown dtypes, impossible shapes, tensors
    that overlap, leave holes, or do not end where the file ends.
    """
    try:
        entries = json.loads(header, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise _corrupt(where, f"the header is not valid JSON ({error})") from error
    if not isinstance(entries, dict):
        raise _corrupt(where, "the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(where, "__metadata__ is not a map of strings")
    start = 8 + len(header)
    tensors = tuple(_tensor(name, entry, start, where) for name, entry in entries.items())
    _check_coverage(tensors, start, size, where)
    return Header(tensors, metadata)


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """``object_pairs_hook`` for JSON in which a name that occurs twice is an error (ValueError)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(name)} occurs twice")
    return found


def shown(name: str) -> str:
    """A name out of an untrusted file, fit for one line of a message."""
    return name if name.isprintable() and len(name) <= 200 else ascii(name[:80])


def _tensor(name: str, entry: object, start: int, where: str) -> Tensor:
    what = f"tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise _corrupt(where, f"{what} has no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _corrupt(where, f"{what} has unknown dtype {shown(str(dtype))!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _corrupt(where, f"{what} has an impossible shape or offsets")
    if len(shape) > MAX_DIMENSIONS or prod(max(dimension, 1) for dimension in shape) > MAX_ELEMENTS:
        raise _corrupt(where, f"{what} has an impossible shape: its shape and dtype need more than any file holds")
    num_bytes = tensor_bytes(dtype, shape)
    if offsets[1] - offsets[0] != num_bytes:
        raise _corrupt(where, f"{what} spans {offsets[1] - offsets[0]} bytes, its shape and dtype need {num_bytes}")
    return Tensor(name, dtype, tuple(shape), start + offsets[0], num_bytes)


def _check_coverage(tensors: Iterable[Tensor], start: int, size: int, where: str) -> None:
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != end:
            kind = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise _corrupt(where, f"tensor {shown(tensor.name)} {kind}")
        end = tensor.offset + tensor.num_bytes
    if end != size:
        kind = "truncated" if end > size else "followed by bytes that belong to no tensor"
        raise _corrupt(where, f"the tensors end at byte {end}, the file at {size}: it is {kind}")


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _corrupt(where: str, what: str) -> CorruptData:
    return CorruptData(f"{where}: {what}; get the file again", reason="HEADER_INVALID")
