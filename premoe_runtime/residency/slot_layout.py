"""How a blob lies in a slot: as the pack has it, or as what kernels read is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.families.stored import HeldField, held_fields
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import BlobLayout, Manifest
from premoe_runtime.numbers.registry import numbers_of
from premoe_runtime.numbers.spec import NumberFormat
from premoe_runtime.residency.blob_fields import cast_layout, check_castable, field_view, packed_layout, torch_dtype


@dataclass(frozen=True, slots=True)
class Dequantised:
    """What makes the fields that kernels read of blobs in a number format."""

    numbers: NumberFormat
    fields: tuple[HeldField, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, manifest: Manifest, dtype: torch.dtype) -> Dequantised | None:
        """None where experts are stored as they are computed with. Raises InvalidInput for what is not known here."""
        if manifest.numbers is None:
            return None
        if manifest.family not in FAMILIES:
            raise InvalidInput(f"family {manifest.family!r} is not known", reason="UNKNOWN_FAMILY")
        numbers, plain = numbers_of(manifest.numbers), {field.name for field in manifest.layout.fields}
        fields = held_fields(FAMILIES[manifest.family], numbers)
        if all(field.name in plain for field in fields):
            return None
        check_castable("BF16", dtype)
        return cls(numbers, fields, dtype)

    def layout(self, stored: BlobLayout) -> BlobLayout:
        """Of the fields that are made. Raises InvalidInput when the blobs lack a tensor."""
        known = {field.name: field.shape for field in stored.fields}
        return packed_layout({field.name: self._shape(field, known) for field in self.fields}, self.dtype)

    def _shape(self, field: HeldField, known: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        if field.name in known:
            return known[field.name]
        lacking = [name for weight in field.weights for name in weight if name not in known]
        if lacking:
            raise InvalidInput(
                f"expert blobs hold {', '.join(known)}, but no {lacking[0]!r}; this cannot be run",
                reason="BLOB_LAYOUT_UNSUPPORTED",
            )
        shapes = [self.numbers.shape([known[name] for name in weight]) for weight in field.weights]
        return (sum(rows for rows, *_ in shapes), *shapes[0][1:])

    def make(self, field: HeldField, stored: Mapping[str, torch.Tensor], held: torch.Tensor) -> None:
        """Fill ``held`` [*shape] from the tensors of one blob."""
        if field.name in stored:
            held.copy_(stored[field.name])
            return
        start = 0
        for weight in field.weights:
            made = self.numbers.dequantise([stored[name] for name in weight], self.dtype)
            rows = made.shape[0] // field.turns
            for turn in range(field.turns):
                held[start : start + rows] = made[turn :: field.turns]
                start += rows


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """``stored``: the pack's blobs; ``held``: host tier and slots, where number formats have become plain floats."""

    stored: BlobLayout
    held: BlobLayout
    made: Dequantised | None = None

    @classmethod
    def of(cls, manifest: Manifest, dtype: torch.dtype | None) -> SlotLayout:
        """``dtype``: what blobs are held in; default: what the manifest says. Raises InvalidInput."""
        layout, made = manifest.layout, Dequantised.of(manifest, dtype or torch_dtype(manifest.dtype))
        if made is not None:
            return cls(layout, made.layout(layout), made)
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
        """Make a held blob (uint8[held.blob_bytes]) of a stored one (uint8[stored.blob_bytes]); padding is zeroed."""
        held.zero_()
        sources = {one.name: field_view(stored.unsqueeze(0), self.stored, one.name)[0] for one in self.stored.fields}
        targets = {one.name: field_view(held.unsqueeze(0), self.held, one.name)[0] for one in self.held.fields}
        if self.made is not None:
            for field in self.made.fields:
                self.made.make(field, sources, targets[field.name])
            return
        for name, source in sources.items():
            targets[name].copy_(source)
