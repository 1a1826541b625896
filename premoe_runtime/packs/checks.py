"""``checks.safetensors``: crc32c of every piece of every blob, for transports that check pieces before the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from crc32c import crc32c

from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.pieces import PIECE_BYTES, piece_count
from premoe_runtime.formats.safetensors import encode_header, parse_file

TENSOR = "crc32c"
Checks: TypeAlias = np.ndarray[tuple[int, int, int], np.dtype[np.uint32]]


def piece_checks(blob: bytes | bytearray | memoryview) -> tuple[int, ...]:
    """crc32c of each piece of 1,048,512 bytes, the last one shorter."""
    view = memoryview(blob)
    return tuple(crc32c(view[start : start + PIECE_BYTES]) for start in range(0, len(view), PIECE_BYTES))


def checks_file(layers: Sequence[Sequence[Sequence[int]]], blob_bytes: int) -> bytes:
    """The file for crc values [L][experts of the layer][pieces]: one tensor ``crc32c`` u32 [L, E, pieces].

    E is that of the layer with the most experts; what others lack is 0.
    """
    table = np.zeros((len(layers), max(map(len, layers)), piece_count(blob_bytes)), dtype="<u4")
    for row, values in zip(table, layers, strict=True):
        row[: len(values)] = values
    header = encode_header([(TENSOR, "U32", table.shape)], {"piece_bytes": str(PIECE_BYTES)})
    return header + table.tobytes()


def read_checks(data: bytes, shape: tuple[int, int, int], where: str) -> Checks:
    """The table u32 [L, E, pieces]. Raises CorruptData when the file does not hold exactly that."""
    tensors = parse_file(data, where=where).tensors
    if len(tensors) != 1 or (tensors[0].name, tensors[0].dtype, tensors[0].shape) != (TENSOR, "U32", shape):
        raise CorruptData(f"{where}: expected one tensor {TENSOR} u32 {list(shape)}", reason="HEADER_INVALID")
    return np.frombuffer(data, dtype="<u4", offset=tensors[0].offset).reshape(shape)
