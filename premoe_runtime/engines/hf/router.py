"""The restricted router: a family's own arithmetic at full width, with a mask where experts are chosen.

The mask is -inf for experts that a token's pattern leaves out. Under ``selection`` (the default) it only decides which
experts are *chosen*: their weights are the family's own over all experts. Under ``slice`` the router's rows count as
removed, as in the PreMoE papers: the softmax runs over the kept ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.residency.bank import ExpertBank

Recorder = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""``recorder(layer, logits f32[T, E], ids i64[T, k], weights [T, k])``; id E stands for "no expert"."""


class Routing(NamedTuple):
    """Of T tokens: ``weights`` [T, k], ``ids`` i64[T, k] (E: no expert, weight 0), ``mass`` f32[T]."""

    weights: torch.Tensor
    ids: torch.Tensor
    mass: torch.Tensor


def _scores(spec: RouterSpec, logits: torch.Tensor) -> torch.Tensor:
    if spec.score == "softmax":
        return torch.softmax(logits, dim=-1)
    return torch.sigmoid(logits) if spec.score == "sigmoid" else logits


def route(
    spec: RouterSpec,
    top_k: int,
    logits: torch.Tensor,
    mask: torch.Tensor,
    sliced: torch.Tensor,
    active: torch.Tensor,
) -> Routing:
    """Choose and weigh experts (method.md section 5; runtime decision 3).

    ``logits``: [T, E] in the model's dtype; ``mask``: f32[T, E], 0 or -inf; ``sliced``: bool[T]; ``active``: i64[T],
    how many of the top-k ranks a token uses. Ranks beyond ``active``, or beyond the kept experts, get weight 0 and id
    E; the family's renormalisation runs over the ranks used. ``mass`` is the share of the full router's scores that
    lies on kept experts. With an all-zero mask and ``active == top_k`` the result is the stock routers', bit for bit.
    """
    num_experts = logits.shape[-1]
    values = logits.float()
    scores = _scores(spec, values)
    if spec.score == "softmax":
        # Only a softmax spreads what the removed rows had; for the other scores both semantics coincide.
        choice = torch.where(sliced[:, None], torch.softmax(values + mask, dim=-1), scores) + mask
    else:
        choice = scores + mask
    best, ids = torch.topk(choice, top_k, dim=-1)
    ranks = torch.arange(top_k, device=logits.device)
    used = (best > -torch.inf) & (ranks < active[:, None])
    if spec.score == "topk_softmax":
        weights = torch.softmax(best.masked_fill(~used, -torch.inf), dim=-1).masked_fill(~used, 0.0)
    else:
        weights = best.masked_fill(~used, 0.0)
    if spec.renormalise:
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / torch.where(total > 0, total, 1.0)
    if spec.scale != 1.0:
        weights = weights * spec.scale
    if spec.weights_dtype == "model":
        weights = weights.to(logits.dtype)
    share = torch.softmax(values, dim=-1) if spec.score == "topk_softmax" else scores
    mass = share.masked_fill(mask < 0, 0.0).sum(dim=-1) / share.sum(dim=-1)
    return Routing(weights, ids.masked_fill(~used, num_experts), mass.clamp_(max=1.0))


class StepState:
    """What the coming forward runs under, in buffers that keep their addresses: a mask row and a width per token."""

    def __init__(self, num_layers: int, top_k: int, device: torch.device) -> None:
        self._top_k = top_k
        self._device = device
        self._layers = num_layers
        self._tokens: int | None = None
        self.recorder: Recorder | None = None
        self._allocate(0)
        self.set(0, top_k)

    def set(self, rows: torch.Tensor | int, active: torch.Tensor | int) -> None:
        """Fix rows and widths; plain ints hold for every token of whatever forward comes.

        Raises InvalidInput when the lengths differ or ``active`` is outside 1..top-k.
        """
        lengths = {value.numel() for value in (rows, active) if isinstance(value, torch.Tensor)}
        if len(lengths) > 1:
            raise InvalidInput(f"rows and active differ in length: {sorted(lengths)}", reason="STEP_SHAPE")
        low, high = (
            (int(active.min()), int(active.max()))
            if isinstance(active, torch.Tensor) and active.numel()
            else (active, active)
            if isinstance(active, int)
            else (1, 1)
        )
        if low < 1 or high > self._top_k:
            raise InvalidInput(f"active experts must be 1 to {self._top_k}, not {low} to {high}", reason="STEP_ACTIVE")
        self._tokens = lengths.pop() if lengths else None
        self._defaults = (rows if isinstance(rows, int) else 0, active if isinstance(active, int) else self._top_k)
        if self._tokens is not None and self._tokens > self.rows.numel():
            self._allocate(self._tokens)
        for buffer, value in ((self.rows, rows), (self.active, active)):
            if isinstance(value, torch.Tensor):
                buffer[: value.numel()].copy_(value.reshape(-1))
            else:
                buffer.fill_(value)

    def take(self, tokens: int) -> None:
        """A forward of this many tokens begins. Raises InvalidInput when rows were set for another count."""
        if self._tokens is not None and self._tokens != tokens:
            raise InvalidInput(
                f"rows are set for {self._tokens} tokens, but the forward has {tokens}", reason="STEP_SHAPE"
            )
        if tokens > self.rows.numel():
            self._allocate(tokens)
            self.rows.fill_(self._defaults[0])
            self.active.fill_(self._defaults[1])
        self.count = tokens

    def retained_mass(self) -> torch.Tensor:
        """f32[T] of the last forward: kept share of the full router's scores, mean over MoE layers."""
        return self.mass[:, : self.count].mean(dim=0)

    def _allocate(self, tokens: int) -> None:
        capacity = max(64, 1 << max(tokens - 1, 0).bit_length())
        # Tensors born in inference mode could not be written outside of it, and any forward may be the first long one.
        with torch.inference_mode(False):
            self.rows = torch.zeros(capacity, dtype=torch.int64, device=self._device)
            self.active = torch.full((capacity,), self._top_k, dtype=torch.int64, device=self._device)
            self.mass = torch.zeros((self._layers, capacity), device=self._device)
        self.count = 0


class RestrictedRouter(nn.Module):
    """Stands in for a stock top-k router: full-width ``weight`` [E, H], ids mapped to slots through the bank's LUT."""

    def __init__(
        self, layer: int, spec: RouterSpec, top_k: int, weight: nn.Parameter, bank: ExpertBank, state: StepState
    ) -> None:
        super().__init__()
        self.layer, self.spec, self.top_k = layer, spec, top_k
        self.weight = weight
        self._bank, self._state = bank, state

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``(logits [T, E], weights [T, k], slots i64[T, k])``, the order stock blocks expect."""
        state, bank = self._state, self._bank
        hidden = hidden_states.reshape(-1, self.weight.shape[-1])
        tokens = hidden.shape[0]
        if self.layer == 0:
            state.take(tokens)
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight)  # routers may be wider than the model
        rows = state.rows[:tokens]
        routing = route(
            self.spec, self.top_k, logits, bank.mask[self.layer, rows], bank.sliced[rows], state.active[:tokens]
        )
        state.mass[self.layer, :tokens] = routing.mass.detach()
        if state.recorder is not None:
            state.recorder(self.layer, logits.float(), routing.ids, routing.weights)
        return logits, routing.weights, bank.lut[self.layer, routing.ids]
