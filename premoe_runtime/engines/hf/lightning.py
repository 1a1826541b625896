"""The cache class that MiniMax's model insists on: its blocks with lightning attention have verbs of their own."""

from __future__ import annotations

import torch
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from premoe_runtime.engines.hf.kv import StepCache


class LightningStepCache(StepCache, MiniMaxCache):  # type: ignore[misc]  # transformers has no types
    """A step's cache whose recurrent sums are asked for and put back as MiniMax does."""

    linear_cache: tuple[torch.Tensor, ...] = ()
    """Not used: sums lie in ``layers``."""

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        """[B, heads, D, D] of one block; None while the rows have not begun."""
        found: torch.Tensor | None = self.layers[layer_idx].recurrent_states[0]
        return found

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        self.layers[layer_idx].update_recurrent_state(linear_cache)
