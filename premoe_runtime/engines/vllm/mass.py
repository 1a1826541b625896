"""What rows retain of the router: for every token of a step, the sum over layers."""

from __future__ import annotations

import numpy as np
import torch

from premoe_runtime.engines.vllm.routing import retained
from premoe_runtime.engines.vllm.rows import TokenRows
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.residency.slot_tables import SlotTables

NOTED_TOKENS = 64
"""Tokens of a step up to which logits are kept, so that all layers are worked out at once; more would take memory."""


class RetainedMass:
    """``total``: f32[most tokens of a step], at a fixed address, which routers add to, layer by layer."""

    def __init__(self, spec: RouterSpec, tables: SlotTables, tokens: int) -> None:
        self._spec, self._mask = spec, tables.mask
        self.total = torch.zeros(tokens, device=tables.device)
        noted = min(tokens, NOTED_TOKENS)
        self._logits = torch.zeros(tables.num_layers, noted, tables.num_experts, device=tables.device)
        self._noted: list[int] = []

    def clear(self) -> None:
        """A step begins."""
        self.total.zero_()
        self._noted = []

    def add(self, layer: int, logits: torch.Tensor, mask: torch.Tensor) -> None:
        """``logits``: [T, E] of a layer's router; ``mask``: f32[T or 1, E]."""
        if len(logits) > self._logits.shape[1]:
            self.add_now(logits, mask)
        else:
            self._logits[layer, : len(logits)].copy_(logits)
            self._noted.append(layer)

    def add_now(self, logits: torch.Tensor, mask: torch.Tensor) -> None:
        """Where a step is compiled, or somebody looks at once."""
        self.total[: len(logits)].add_(retained(self._spec, logits, mask))

    def add_all(self, tokens: int) -> None:
        """Of a layer in which every token keeps all experts."""
        self.total[:tokens].add_(1.0)

    def sums(self, rows: TokenRows) -> list[float]:
        """Of every request of the step, once it has run: over tokens and layers. Waits for the device."""
        counts = np.array([*rows.counts.values()], dtype=np.int64)
        tokens = int(counts.sum())
        if self._noted:
            layers = torch.tensor(self._noted, device=self.total.device)
            mask = self._mask[layers[:, None], rows.of_token[:tokens]]
            self.total[:tokens].add_(retained(self._spec, self._logits[layers, :tokens], mask).sum(dim=0))
            self._noted = []
        mass = self.total[:tokens].cpu().double().numpy()
        found: list[float] = np.add.reduceat(mass, counts.cumsum() - counts).tolist()
        return found
