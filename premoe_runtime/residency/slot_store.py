"""The slot store: every slot of a model as blobs in memory of our own, with the tables over them."""

from __future__ import annotations

import torch

from premoe_runtime.residency.arena import SlotArena
from premoe_runtime.residency.host_tier import digest_of
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.slot_tables import SlotTables


class SlotStore(SlotTables):
    """Slots of every MoE layer in arenas of blobs.

    ``one_layer``: all layers share the room of the largest, so that experts of one layer may be resident at a time.
    """

    def __init__(self, shape: SlotShape, device: str | torch.device = "cpu", *, one_layer: bool = False) -> None:
        super().__init__(shape, device)
        held = shape.layout.held
        room = SlotArena(max(self.slots), held, self.device) if one_layer else None
        self.arenas = [SlotArena(count, held, self.device, within=room) for count in self.slots]

    def slot(self, layer: int, index: int) -> torch.Tensor:
        """uint8[blob_bytes] of one slot."""
        return self.arenas[layer].slot(index)

    def slot_digest(self, layer: int, index: int) -> str:
        return digest_of(self.slot(layer, index))
