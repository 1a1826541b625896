"""Slots in the parameters of vLLM's experts: in the layout of its kernel, scales and biases too, written in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import blake3
import torch

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.blob_fields import field_view
from premoe_runtime.residency.copier import BlobCopy, Copied, Copy, pace
from premoe_runtime.residency.fetch import never
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.slot_tables import SlotTables


class SlotLayer(Protocol):
    """What the slots of one MoE layer lie in: ``experts.SlotExperts``."""

    @property
    def share(self) -> range:
        """Those that lie on this rank."""
        ...

    def slot_parameters(self) -> dict[str, torch.Tensor]: ...

    def pack(self, fields: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]: ...


class PackedSlots(SlotTables):
    """Tables over the slots of a vLLM model. Blobs come as the pack has them and are packed on the way in.

    ``weights``: of every layer, all that its kernel reads of experts, [slots of this rank, …] by vLLM's names.
    """

    def __init__(self, shape: SlotShape, layers: Sequence[SlotLayer]) -> None:
        # Taken once, after vLLM has packed them: a parameter that took their place later would be another memory.
        self.weights = [layer.slot_parameters() for layer in layers]
        self._layers = list(layers)
        self._shares = [layer.share for layer in layers]
        for here, weights in zip(self._shares, self.weights, strict=True):
            for name, weight in weights.items():
                if weight.shape[:1] != (len(here),):
                    raise InvalidInput(
                        f"vLLM's backend lays out {name} of {len(here)} experts as {list(weight.shape)}, where none "
                        "has a place of its own; choose another MoE backend, or use the engine hf",
                        reason="ENGINE_UNSUPPORTED",
                    )
        super().__init__(shape, next(iter(self.weights[0].values())).device)

    def holds(self, layer: int, index: int) -> bool:
        return index in self._shares[layer]

    def write(self, expert: ExpertId, slot: int, blob: torch.Tensor) -> None:
        """Fill a slot of this rank that the tables do not name. ``blob``: uint8[blob_bytes] as held."""
        held = self.shape.layout.held
        fields = {field.name: field_view(blob[None], held, field.name)[0] for field in held.fields}
        packed, places = self._layers[expert.layer].pack(fields), self.weights[expert.layer]
        for name, place in places.items():
            place[slot - self._shares[expert.layer].start].copy_(packed[name])
        self.note_digest(expert, _digest([packed[name] for name in places]))

    def slot_digest(self, layer: int, index: int) -> str:
        place = index - self._shares[layer].start
        return _digest([weight[place] for weight in self.weights[layer].values()])


def _digest(parts: Sequence[torch.Tensor]) -> str:
    whole = blake3.blake3()
    for part in parts:
        whole.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


class PackingCopier:
    """Carries out copies into packed slots of this rank, one at a time. Never raises: what went wrong is in the result.

    Nothing is saved from slots: a packed expert is no blob any more. Whoever wants it again fetches it again.
    ``turns`` is held while one expert is packed.
    """

    def __init__(
        self, slots: PackedSlots, arena: HostArena, turns: AbstractContextManager[object] | None = None
    ) -> None:
        self._slots, self._arena, self._turns = slots, arena, turns or nullcontext()

    def run(
        self, copy: Copy, cancelled: Callable[[], bool] = never, *, after: torch.cuda.Event | None = None
    ) -> Copied:
        """``after``: CUDA event of the last step that could read the slots."""
        started, begun = time.time_ns(), time.monotonic()
        written, torn = set[ExpertId](), set[ExpertId]()
        error: Exception | None = None
        try:
            if after is not None:
                after.synchronize()
            for blob in copy.loads:
                if self._elsewhere(blob):
                    continue
                pace(copy, len(written), self._arena.blob_bytes, begun, cancelled)
                if cancelled():
                    break
                torn.add(blob.expert)
                self._write(blob)
                torn.remove(blob.expert)
                written.add(blob.expert)
        except Exception as failure:
            error = failure
        return Copied(frozenset(written), frozenset(torn), {}, started, time.time_ns(), error)

    def _elsewhere(self, blob: BlobCopy) -> bool:
        """Another rank has its slot."""
        layer = blob.expert.layer
        return 0 <= blob.slot < self._slots.slots[layer] and not self._slots.holds(layer, blob.slot)

    def _write(self, blob: BlobCopy) -> None:
        if not (0 <= blob.place < self._arena.capacity and self._slots.holds(blob.expert.layer, blob.slot)):
            raise IndexError(f"{blob.expert}: there is no slot {blob.slot} or no place {blob.place}")
        with self._turns:
            self._slots.write(blob.expert, blob.slot, self._arena.blob(blob.place))
