"""Routed experts that live in slots, run by transformers' own grouped kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.integrations.moe import grouped_mm_experts_forward

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.residency.arena import SlotArena

FLOATS = frozenset({"F32", "F16", "BF16"})
MATRICES, BIASES = ("gate_up", "down"), ("gate_up_bias", "down_bias")
Gate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def slot_experts(arena: SlotArena, stock: nn.Module) -> SlotExperts:
    """The kernel for the arena's layout, with the stock experts' activation. Raises InvalidInput: there is none."""
    fields = arena.layout.fields
    names, dtypes = tuple(field.name for field in fields), {field.dtype for field in fields}
    if names not in (MATRICES, MATRICES + BIASES) or len(dtypes) > 1 or not dtypes <= FLOATS:
        described = ", ".join(f"{field.name} {field.dtype}" for field in fields)
        raise InvalidInput(f"no kernel runs expert blobs of {described}", reason="BLOB_LAYOUT_UNSUPPORTED")
    return SlotExperts(arena, _gate(stock))


def _gate(stock: nn.Module) -> Gate:
    """What the stock experts make of an expert's gate and up halves."""
    if hasattr(stock, "limit"):
        alpha, limit = (float(getattr(stock, name)) for name in ("alpha", "limit"))

        def clamped(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
            return (up + 1) * (gate * torch.sigmoid(gate * alpha))

        return clamped
    act_fn: Callable[[torch.Tensor], torch.Tensor] = stock.act_fn  # type: ignore[assignment]  # module or function
    return lambda gate, up: act_fn(gate) * up


class SlotExperts(nn.Module):
    """Stands in for a family's experts module: ``num_experts`` slots, weights seen through the arena's strided views.

    The weights are plain attributes, neither parameters nor buffers: they belong to the store, are never saved, moved
    or counted with the model. Always runs ``grouped_mm``: it sums a token's experts in rank order, so results do not
    depend on which slot an expert lies in; the eager loop sums in slot order, and ``batched_mm`` computes with slot
    contents for ranks that have no expert. Id ``num_experts`` is the "no expert" sentinel, which the kernel leaves out.
    """

    has_gate = True
    is_transposed = False
    is_concatenated = True
    _is_expert_parallel = True
    """Switches transformers' sentinel handling on."""

    def __init__(self, arena: SlotArena, gate: Gate) -> None:
        super().__init__()
        self.num_experts = arena.data.shape[0]
        self.gate_up_proj = arena.field("gate_up")
        self.down_proj = arena.field("down")
        self.has_bias = len(arena.layout.fields) > len(MATRICES)
        if self.has_bias:
            self.gate_up_proj_bias = arena.field("gate_up_bias")
            self.down_proj_bias = arena.field("down_bias")
        self._gate = gate

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, H] of hidden states, i64[T, k] of slots, [T, k] of weights -> [T, H]."""
        # The handling masks three tensors: on the host a look whether there is a sentinel at all costs less.
        self._is_expert_parallel = top_k_index.device.type != "cpu" or int(top_k_index.max()) == self.num_experts
        output: torch.Tensor = grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
        return output

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self._gate(*gate_up.chunk(2, dim=-1))
