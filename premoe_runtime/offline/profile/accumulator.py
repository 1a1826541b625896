"""Streaming accumulation of a profile from router outputs, on the device they come from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.offline.profile.state import P_BINS, QUANTUM, ProfileState


class ProfileAccumulator:
    """Adds up batches layer by layer; no logits are kept."""

    def __init__(self, num_layers: int, num_experts: int, router: RouterSpec, *, device: str = "cpu") -> None:
        self._shape = (num_layers, num_experts)
        self._router = router
        self._utility = self._zeros(device, num_layers, num_experts * P_BINS)
        self._chosen = torch.zeros(num_layers, num_experts * P_BINS, dtype=torch.int64, device=device)
        self._max_p = self._zeros(device, num_layers)
        self._soft = self._zeros(device, num_layers, num_experts)
        self._mass = self._zeros(device, num_layers, num_experts)
        self._top_logit = self._zeros(device, num_layers, num_experts)
        self._tokens = [0] * num_layers
        self._norm = self._zeros(device, num_layers, num_experts)
        self._impact = self._zeros(device, num_layers, num_experts)
        self._weighed = [0] * num_layers

    def add(self, layer: int, logits: Tensor, ids: Tensor, weights: Tensor) -> None:
        """Add one layer's tokens, padding already left out.

        logits [T, n] raw router logits of the layer's n experts; ids i64[T, k] and weights [T, k] what the true router
        chose and gave.
        Raises CorruptData for logits that are not finite, InvalidInput when an absent expert was chosen.
        """
        experts = logits.shape[1]
        full = logits.double()
        if not torch.isfinite(full).all():
            raise CorruptData(f"router logits of MoE layer {layer} are not finite", reason="LOGITS_NOT_FINITE")
        if ids.numel() and int(ids.max()) >= experts:
            raise InvalidInput(
                "a profile needs every expert resident, but the router found one absent", reason="EXPERTS_ABSENT"
            )
        chosen = full.gather(1, ids)
        p = torch.softmax(chosen, dim=-1)
        utility = _rounded(torch.maximum(chosen, torch.sigmoid(chosen)))
        cells = (ids * P_BINS + (p * P_BINS).long().clamp_(max=P_BINS - 1)).flatten()
        self._utility[layer].scatter_add_(0, cells, utility.flatten())
        self._chosen[layer].scatter_add_(0, cells, torch.ones_like(cells))
        self._max_p[layer] += _rounded(p.amax(dim=-1)).sum()
        self._soft[layer].scatter_add_(0, ids.flatten(), _rounded(weights.double()).flatten())
        self._mass[layer, :experts] += _rounded(self._probabilities(full)).sum(dim=0)
        top_logit, top = full.max(dim=-1)
        self._top_logit[layer].scatter_add_(0, top, _rounded(top_logit))
        self._tokens[layer] += int(logits.shape[0])

    def weigh(self, layer: int, ids: Tensor, change: Tensor, norm: Tensor, sensitivity: Tensor) -> None:
        """Add what one layer's tokens, padding left out, say about the experts that they chose.

        ids i64[T, k]; change [T, k] of the layer's routed output without the expert, norm [T, k] of its weighted
        output, sensitivity [T] of the answers' margin to the routed output (all norms). Raises CorruptData when a
        value is not finite.
        """
        squares = (change.double() * sensitivity.double()[:, None]).square()
        if not (torch.isfinite(squares).all() and torch.isfinite(norm).all()):
            raise CorruptData(f"gradients of MoE layer {layer} are not finite", reason="GRADIENT_NOT_FINITE")
        self._impact[layer].scatter_add_(0, ids.flatten(), _rounded(squares).flatten())
        self._norm[layer].scatter_add_(0, ids.flatten(), _rounded(norm.double()).flatten())
        self._weighed[layer] += int(ids.shape[0])

    def state(self) -> ProfileState:
        """What has been added so far."""
        binned = (*self._shape, P_BINS)
        return ProfileState(
            utility=self._utility.cpu().numpy().reshape(binned).copy(),
            chosen=self._chosen.cpu().numpy().reshape(binned).copy(),
            max_p=self._max_p.cpu().numpy().copy(),
            soft=self._soft.cpu().numpy().copy(),
            mass=self._mass.cpu().numpy().copy(),
            top_logit=self._top_logit.cpu().numpy().copy(),
            tokens=np.array(self._tokens, np.int64),
            norm=self._norm.cpu().numpy().copy(),
            impact=self._impact.cpu().numpy().copy(),
            weighed=np.array(self._weighed, np.int64),
        )

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self._router.score == "sigmoid":
            scores = torch.sigmoid(logits)
            return scores / scores.sum(dim=-1, keepdim=True)
        return torch.softmax(logits, dim=-1)

    @staticmethod
    def _zeros(device: str, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=device)


def _rounded(values: Tensor) -> Tensor:
    """Round to multiples of 2⁻²⁴, which float64 then adds exactly in any order."""
    return torch.round(values / QUANTUM) * QUANTUM
