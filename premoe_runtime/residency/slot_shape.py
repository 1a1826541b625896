"""How many slots a model has and what lies in one: what decides about them needs to know no more. A value, no bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.numbers.registry import numbers_of
from premoe_runtime.residency.ledger import slots_of_layers
from premoe_runtime.residency.slot_layout import SlotLayout


@dataclass(frozen=True, slots=True)
class SlotShape:
    """``slots``: of every MoE layer. ``max_rows``: of the mask table. ``layout``: of a blob as stored and as held.
    ``ranks``: devices that every layer's slots are shared out over (``ranks.share``).
    """

    manifest: Manifest
    slots: tuple[int, ...]
    max_rows: int
    layout: SlotLayout
    ranks: int = 1

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        slots: int | Sequence[int],
        max_rows: int = 64,
        dtype: torch.dtype | None = None,
    ) -> SlotShape:
        """``slots``: one number for all layers, or one for each. ``dtype``: blobs are cast on arrival. Raises
        InvalidInput.
        """
        if max_rows < 1:
            raise InvalidInput("max_rows must be at least 1", reason="ROWS_TOO_FEW")
        counts = slots_of_layers(slots, manifest.layer_experts)
        return cls(manifest, counts, max_rows, SlotLayout.of(manifest, dtype))

    @classmethod
    def as_stored(
        cls, manifest: Manifest, *, slots: int | Sequence[int], max_rows: int = 64, ranks: int = 1
    ) -> SlotShape:
        """Blobs stay as the pack has them: for whoever makes of them himself what kernels read. Raises InvalidInput."""
        counts = slots_of_layers(slots, manifest.layer_experts)
        if min(counts) < ranks:
            raise InvalidInput(
                f"{min(counts)} slots of a layer do not go round {ranks} devices, each of which holds whole experts; "
                "ask for fewer devices or more slots",
                reason="SLOTS_TOO_FEW",
            )
        return cls(manifest, counts, max_rows, SlotLayout(manifest.layout, manifest.layout), ranks)

    @property
    def num_layers(self) -> int:
        return len(self.slots)

    @property
    def num_experts(self) -> int:
        return self.manifest.num_experts

    @property
    def blob_bytes(self) -> int:
        """Bytes of one blob in a slot."""
        return self.layout.blob_bytes

    @property
    def skeleton_bytes(self) -> int:
        """About those of the skeleton in memory: what is in the experts' number format grows as they do."""
        numbers, layout = self.manifest.numbers, self.layout
        if numbers is None or numbers_of(numbers).experts_only:
            return self.manifest.skeleton_bytes
        return self.manifest.skeleton_bytes * layout.blob_bytes // layout.stored.blob_bytes

    @property
    def device_bytes(self) -> int:
        """Bytes of all slots on all ranks, empty ones included."""
        return sum(self.slots) * self.blob_bytes
