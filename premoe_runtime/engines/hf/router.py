"""The restricted router: a family's own arithmetic at full width, with a mask where experts are chosen.

The mask is -inf for experts that a token's pattern leaves out. Under ``selection`` (the default) it only decides which
experts are *chosen*: their weights are the family's own over all experts. Under ``slice`` the router's rows count as
removed, as in the PreMoE papers: the softmax runs over the kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from premoe_runtime.engines.hf.step_state import ALL_TOKENS, LayerRules, StepState
from premoe_runtime.families.spec import RouterOutput
from premoe_runtime.formats.manifest import RouterSpec


class Routing(NamedTuple):
    """Of T tokens: ``weights`` [T, k], ``ids`` i64[T, k] (n: no expert, weight 0), ``mass`` f32[T] (None: all of it).

    k is the most ranks that a token uses, at most the model's top-k.
    """

    weights: torch.Tensor
    ids: torch.Tensor
    mass: torch.Tensor | None


def route(spec: RouterSpec, logits: torch.Tensor, rules: LayerRules) -> Routing:
    """Choose and weigh experts (method.md section 5; runtime decision 3).

    ``logits``: [T, n] of the layer's n experts, in the model's dtype. The family's renormalisation runs over the ranks
    used and over no others, so a token's weights are, bit for bit, those of a stock router with that top-k. ``mass`` is
    the share of the full router's scores that lies on kept experts.
    """
    values = logits.float()
    scores = _scores(spec, values)
    choice = _choice(spec, values, scores, rules)
    width = max((count for count, _ in rules.ranks), default=1)
    best, ids = torch.topk(choice, width, dim=-1)
    if len(rules.ranks) == 1 and rules.ranks[0][1] is ALL_TOKENS:
        weights = _weigh(spec, best)
    else:
        weights, chosen = torch.zeros_like(best), torch.full_like(ids, logits.shape[-1])
        for count, tokens in rules.ranks:
            weights[tokens, :count] = _weigh(spec, best[tokens, :count])
            chosen[tokens, :count] = ids[tokens, :count]
        ids = chosen
    if spec.weights_dtype == "model":
        weights = weights.to(logits.dtype)
    return Routing(weights, ids, _mass(spec, values, scores, rules))


def _scores(spec: RouterSpec, logits: torch.Tensor) -> torch.Tensor:
    if spec.score == "softmax":
        return torch.softmax(logits, dim=-1)
    return torch.sigmoid(logits) if spec.score == "sigmoid" else logits


def _choice(spec: RouterSpec, values: torch.Tensor, scores: torch.Tensor, rules: LayerRules) -> torch.Tensor:
    """f32[T, n]: what experts are chosen by, -inf for those left out."""
    if rules.mask is None:
        return scores
    # Only a softmax spreads what the removed rows had; for the other scores both semantics coincide.
    if spec.score == "softmax" and rules.sliced is not False:
        kept_only = torch.softmax(values + rules.mask, dim=-1)
        scores = kept_only if rules.sliced is True else torch.where(rules.sliced, kept_only, scores)
    return scores + rules.mask


def _weigh(spec: RouterSpec, best: torch.Tensor) -> torch.Tensor:
    """f32[T, n] combine weights of tokens that use all n ranks; ``best``: what these were chosen by."""
    weights = torch.softmax(best, dim=-1) if spec.score == "topk_softmax" else best
    if spec.renormalise:
        # Kept experts may all have scores that underflow.
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return weights * spec.scale if spec.scale != 1.0 else weights


def _mass(spec: RouterSpec, values: torch.Tensor, scores: torch.Tensor, rules: LayerRules) -> torch.Tensor | None:
    if rules.mask is None:
        return None
    share = torch.softmax(values, dim=-1) if spec.score == "topk_softmax" else scores
    # No score is negative, so this takes out what the mask made -inf.
    mass = (share.detach() + rules.mask).clamp_min(0.0).sum(dim=-1)
    return mass / scores.detach().sum(dim=-1) if spec.score == "sigmoid" else mass


class RestrictedRouter(nn.Module):
    """Stands in for a stock top-k router: ``weight`` [n, H] of all n experts, kept or not; ids become slots by the LUT.

    A layer with fewer experts than others has a router of fewer rows, and computes as such: nothing is padded. In the
    LUT, id n is as absent as any expert without a slot.
    """

    def __init__(
        self,
        layer: int,
        spec: RouterSpec,
        weight: nn.Parameter,
        lut: torch.Tensor,
        state: StepState,
        returns: Sequence[RouterOutput] = ("logits", "weights", "ids"),
    ) -> None:
        super().__init__()
        self.layer, self.spec, self.returns = layer, spec, tuple(returns)
        self.weight = weight
        self._lut, self._state = lut, state

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits [T, n], weights [T, k] and, as ids, slots i64[T, k], in the order that the family's block expects."""
        state = self._state
        hidden = hidden_states.reshape(-1, self.weight.shape[-1])
        if self.layer == 0:
            state.take(hidden.shape[0])
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight)  # routers may be wider than the model
        routing = route(self.spec, logits, state.layers[self.layer])
        state.masses[self.layer] = routing.mass
        if state.recorder is not None:
            state.recorder(self.layer, logits.float(), routing.ids, routing.weights)
        given = {"logits": logits, "weights": routing.weights, "ids": self._lut[routing.ids]}
        return tuple(given[name] for name in self.returns)
