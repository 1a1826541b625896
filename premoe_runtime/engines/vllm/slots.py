"""Slots in the parameters of vLLM's experts: in the layout of its kernel, written in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import blake3
import torch

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.blob_fields import field_view
from premoe_runtime.residency.copier import BlobCopy, Copied, Copy
from premoe_runtime.residency.fetch import never
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.slot_tables import SlotTables


class SlotLayer(Protocol):
    """What the slots of one MoE layer lie in: ``experts.SlotExperts``."""

    w13_weight: torch.Tensor
    w2_weight: torch.Tensor

    def pack(self, gate_up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


class PackedSlots(SlotTables):
    """Tables over the slots of a vLLM model. Blobs come as the host tier holds them and are packed on the way in."""

    def __init__(self, shape: SlotShape, layers: Sequence[SlotLayer]) -> None:
        super().__init__(shape, layers[0].w13_weight.device)
        self._layers = list(layers)
        # Taken once, after vLLM has packed them: a parameter that took their place later would be another memory.
        self.weights = [(layer.w13_weight.detach(), layer.w2_weight.detach()) for layer in layers]

    def write(self, expert: ExpertId, slot: int, blob: torch.Tensor) -> None:
        """Fill a slot that the tables do not name. ``blob``: uint8[blob_bytes] as held."""
        held = self.shape.layout.held
        gate_up, down = (field_view(blob[None], held, name)[0] for name in ("gate_up", "down"))
        packed = self._layers[expert.layer].pack(gate_up, down)
        for place, made in zip(self.weights[expert.layer], packed, strict=True):
            place[slot].copy_(made)
        self.note_digest(expert, _digest(packed))

    def slot_digest(self, layer: int, index: int) -> str:
        return _digest([weight[index] for weight in self.weights[layer]])


def _digest(parts: Sequence[torch.Tensor]) -> str:
    whole = blake3.blake3()
    for part in parts:
        whole.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


class PackingCopier:
    """Carries out copies into packed slots, one at a time. Never raises: what went wrong is in the result.

    Nothing is saved from slots: a packed expert is no blob any more. Whoever wants it again fetches it again.
    """

    def __init__(self, slots: PackedSlots, arena: HostArena) -> None:
        self._slots, self._arena = slots, arena

    def run(self, copy: Copy, cancelled: Callable[[], bool] = never) -> Copied:
        started = time.time_ns()
        written, torn = set[ExpertId](), set[ExpertId]()
        error: Exception | None = None
        try:
            for blob in copy.loads:
                if cancelled():
                    break
                torn.add(blob.expert)
                self._write(blob)
                torn.remove(blob.expert)
                written.add(blob.expert)
        except Exception as failure:
            error = failure
        return Copied(frozenset(written), frozenset(torn), {}, started, time.time_ns(), error)

    def _write(self, blob: BlobCopy) -> None:
        if not (0 <= blob.place < self._arena.capacity and 0 <= blob.slot < self._slots.slots[blob.expert.layer]):
            raise IndexError(f"{blob.expert}: there is no slot {blob.slot} or no place {blob.place}")
        self._slots.write(blob.expert, blob.slot, self._arena.blob(blob.place))
