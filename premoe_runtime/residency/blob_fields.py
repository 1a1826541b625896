"""How a blob lies in a slot: the pack's own layout, or the same fields in another dtype."""

from __future__ import annotations

from dataclasses import dataclass

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
    """The layout of the same fields in ``dtype``: 256-byte aligned, padded to 4 KiB.

    Raises InvalidInput for fields that are not plain floats (their scales would no longer fit).
    """
    fields: list[BlobField] = []
    end = 0
    for field in layout.fields:
        if field.dtype not in _CONVERTIBLE or _NAMES.get(dtype) not in _CONVERTIBLE:
            raise InvalidInput(
                f"experts stored as {field.dtype} cannot be held as {dtype}; load them in their own dtype",
                reason="DTYPE_NOT_CONVERTIBLE",
            )
        offset = _up(end, FIELD_ALIGNMENT)
        fields.append(BlobField(name=field.name, dtype=_NAMES[dtype], shape=field.shape, offset=offset))
        end = offset + fields[-1].num_bytes
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


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """``stored``: the pack's blobs; ``held``: host tier and slots. They differ only after a dtype cast."""

    stored: BlobLayout
    held: BlobLayout

    @classmethod
    def of(cls, layout: BlobLayout, dtype: torch.dtype | None) -> SlotLayout:
        if dtype is None or all(torch_dtype(field.dtype) == dtype for field in layout.fields):
            return cls(layout, layout)
        return cls(layout, cast_layout(layout, dtype))

    @property
    def converts(self) -> bool:
        return self.stored != self.held

    @property
    def blob_bytes(self) -> int:
        """Bytes of one blob as held."""
        return self.held.blob_bytes

    def convert(self, stored: torch.Tensor, held: torch.Tensor) -> None:
        """Cast one stored blob (uint8[stored.blob_bytes]) into ``held`` (uint8[held.blob_bytes]); padding is zeroed."""
        held.zero_()
        for field in self.stored.fields:
            source = field_view(stored.unsqueeze(0), self.stored, field.name)
            field_view(held.unsqueeze(0), self.held, field.name).copy_(source)
