"""The fields of a blob: their dtypes, where they lie, and one of them seen in many blobs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import BLOB_ALIGNMENT, FIELD_ALIGNMENT, BlobField, BlobLayout

TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_CONVERTIBLE = frozenset({"F32", "F16", "BF16"})


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors or torch dtype name (``BF16``, ``bfloat16``). Raises InvalidInput."""
    known = TORCH_DTYPES | {str(dtype).removeprefix("torch."): dtype for dtype in TORCH_DTYPES.values()}
    if name not in known:
        raise InvalidInput(f"dtype {name!r} is not supported; use one of {', '.join(known)}", reason="DTYPE_UNKNOWN")
    return known[name]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def cast_layout(layout: BlobLayout, dtype: torch.dtype) -> BlobLayout:
    """The layout of the same fields in ``dtype``. Raises InvalidInput for fields that are not plain floats."""
    for field in layout.fields:
        check_castable(field.dtype, dtype)
    return packed_layout({field.name: field.shape for field in layout.fields}, dtype)


def check_castable(stored: str, dtype: torch.dtype) -> None:
    """Raise InvalidInput (DTYPE_NOT_CONVERTIBLE) unless both are plain floats."""
    if stored not in _CONVERTIBLE or _NAMES.get(dtype) not in _CONVERTIBLE:
        raise InvalidInput(
            f"experts stored as {stored} cannot be held as {dtype}; load them in their own dtype",
            reason="DTYPE_NOT_CONVERTIBLE",
        )


def packed_layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> BlobLayout:
    """Fields of these shapes, all in ``dtype``: 256-byte aligned, padded to 4 KiB."""
    fields: list[BlobField] = []
    end = 0
    for name, shape in shapes.items():
        fields.append(BlobField(name=name, dtype=_NAMES[dtype], shape=shape, offset=_up(end, FIELD_ALIGNMENT)))
        end = fields[-1].offset + fields[-1].num_bytes
    return BlobLayout(fields=tuple(fields), blob_bytes=_up(end, BLOB_ALIGNMENT))


def field_view(blobs: torch.Tensor, layout: BlobLayout, name: str) -> torch.Tensor:
    """One field of many blobs, sharing their memory.

    ``blobs``: uint8[n, blob_bytes], contiguous. Returns dtype[n, *shape] with a stride of one blob between rows.
    Raises InvalidInput when the layout has no such field.
    """
    field = next((f for f in layout.fields if f.name == name), None)
    if field is None:
        raise InvalidInput(
            f"expert blobs hold {', '.join(f.name for f in layout.fields)}, but no {name!r}; this cannot be run",
            reason="BLOB_LAYOUT_UNSUPPORTED",
        )
    dtype = torch_dtype(field.dtype)
    flat = blobs.view(dtype)
    strides = [1]
    for size in reversed(field.shape[1:]):
        strides.insert(0, strides[0] * size)
    return flat.as_strided(
        (blobs.shape[0], *field.shape),
        (layout.blob_bytes // dtype.itemsize, *strides),
        flat.storage_offset() + field.offset // dtype.itemsize,
    )
