"""State of fixed size that sequences keep beside keys and values: windows of convolutions, recurrent sums.

A forward works on copies, as layers of a stock cache, and they are written back once it has succeeded: it can be
repeated. A sequence that begins reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from premoe_runtime.families.state import BlockState, Held

Parked = tuple[torch.Tensor, ...]


class KeptState(NamedTuple):
    """The blocks of a model that keep state, and what each keeps."""

    blocks: Sequence[int]
    each: BlockState


class StatePool:
    """``rows`` rows of what a model keeps, allocated once."""

    def __init__(self, kept: KeptState, *, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.row_bytes = len(kept.blocks) * kept.each.num_bytes(dtype.itemsize)
        self.whole_prompts = kept.each.whole_prompts

        def room(held: Held | None) -> torch.Tensor | None:
            if held is None:
                return None
            return torch.zeros(rows, *held.shape, dtype=torch.float32 if held.float32 else dtype, device=device)

        self._held = {block: (room(kept.each.window), room(kept.each.recurrent)) for block in kept.blocks}

    def layers(self, rows: Sequence[int], *, begun: bool) -> list[LinearAttentionLayer | DynamicLayer]:
        """Copies of these rows' state as the layers of a cache, one a block; empty ones unless they have ``begun``."""
        made = [
            LinearAttentionLayer() if block in self._held else DynamicLayer() for block in range(max(self._held) + 1)
        ]
        for block, (window, recurrent) in self._held.items() if begun else ():
            layer = made[block]
            layer.has_previous_state[0] = True
            if window is not None:
                layer.conv_states[0] = window[list(rows)]
                layer.conv_kernel_size[0] = window.shape[-1]
                layer.is_conv_states_initialized[0] = True
                layer.dtype, layer.device = window.dtype, window.device
            if recurrent is not None:
                layer.recurrent_states[0] = recurrent[list(rows)]
                layer.is_recurrent_states_initialized[0] = True
        return made

    def write(self, rows: Sequence[int], layers: Sequence[LinearAttentionLayer | DynamicLayer]) -> None:
        """What a forward has left in the layers that ``layers`` made for these rows."""
        for block, (window, recurrent) in self._held.items():
            if window is not None:
                window[list(rows)] = layers[block].conv_states[0]
            if recurrent is not None:
                recurrent[list(rows)] = layers[block].recurrent_states[0]

    def park(self, row: int) -> Parked:
        """A copy of one row on the host."""
        return tuple(tensor[row].to("cpu", copy=True) for tensor in self._tensors())

    def unpark(self, row: int, parked: Parked) -> None:
        for tensor, data in zip(self._tensors(), parked, strict=True):
            tensor[row].copy_(data)

    def _tensors(self) -> list[torch.Tensor]:
        return [tensor for pair in self._held.values() for tensor in pair if tensor is not None]
