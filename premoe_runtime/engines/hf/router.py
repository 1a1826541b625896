"""The restricted router: a family's own arithmetic at full width, with a mask where experts are chosen.

The mask is -inf for experts that a token's pattern leaves out. Under ``selection`` (the default) it only decides which
experts are *chosen*: their weights are the family's own over all experts. Under ``slice`` the router's rows count as
removed, as in the PreMoE papers: the softmax runs over the kept ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from premoe_runtime.engines.hf.step_state import ALL_TOKENS, LayerRules, StepState
from premoe_runtime.families.spec import FamilySpec
from premoe_runtime.formats.manifest import RouterSpec


class Routing(NamedTuple):
    """Of T tokens: ``weights`` [T, k], ``ids`` i64[T, k] (n: no expert, weight 0), ``mass`` f32[T] (None: all of it).

    k is the most ranks that a token uses, at most the model's top-k.
    """

    weights: torch.Tensor
    ids: torch.Tensor
    mass: torch.Tensor | None


def router_logits(
    spec: RouterSpec, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """[T, n] of [T, H]: in the weights' dtype, which may be wider than the model's, or in float32."""
    if spec.logits_dtype == "float32":
        hidden, weight = hidden.float(), weight.float()
    return nn.functional.linear(hidden.to(weight.dtype), weight, bias)


def route(
    spec: RouterSpec,
    logits: torch.Tensor,
    rules: LayerRules,
    *,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Routing:
    """Choose and weigh experts (method.md section 5; runtime decision 3).

    ``logits``: [T, n] of the layer's n experts; ``bias``: [n], the correction where the family has one; ``dtype``: the
    model's, by default that of the logits. The family's renormalisation runs over the ranks used and over no others,
    so a token's weights are, bit for bit, those of a stock router with that top-k. ``mass`` is the share of the full
    router's scores that lies on kept experts.
    """
    values = logits if spec.scores_dtype == "model" else logits.float()
    full = _scores(spec, values)
    scores = _sliced(spec, values, full, rules)
    choice = _choice(spec, logits if spec.score == "sparsemixer" else scores, rules, bias)
    if len(rules.ranks) == 1 and rules.ranks[0][1] is ALL_TOKENS:
        weights, ids = _pick(spec, choice, scores, rules.ranks[0][0])
    else:
        shape = (len(values), max((count for count, _ in rules.ranks), default=1))
        weights, ids = values.new_zeros(shape), torch.full(shape, values.shape[-1], device=values.device)
        for count, tokens in rules.ranks:
            found, chosen = _pick(spec, choice[tokens], scores[tokens], count)
            weights[tokens, :count], ids[tokens, :count] = found.to(weights.dtype), chosen
    if spec.weights_dtype == "model":
        weights = weights.to(dtype or logits.dtype)
    mass = None
    if rules.mask is not None:
        share = full if spec.score in ("softmax", "sigmoid") else torch.softmax(values, dim=-1)
        mass = retained_share(spec, share.detach(), rules.mask)
    return Routing(weights, ids, mass)


def _scores(spec: RouterSpec, logits: torch.Tensor) -> torch.Tensor:
    if spec.score == "softmax":
        return torch.softmax(logits, dim=-1)
    return torch.sigmoid(logits) if spec.score == "sigmoid" else logits


def _sliced(spec: RouterSpec, values: torch.Tensor, scores: torch.Tensor, rules: LayerRules) -> torch.Tensor:
    """f32[T, n]: the scores, of tokens under ``slice`` those without the rows left out."""
    # Only a softmax spreads what the removed rows had; for the other scores both semantics coincide.
    if rules.mask is None or spec.score != "softmax" or rules.sliced is False:
        return scores
    kept_only = torch.softmax(values + rules.mask, dim=-1)
    return kept_only if rules.sliced is True else torch.where(rules.sliced, kept_only, scores)


def _choice(spec: RouterSpec, scores: torch.Tensor, rules: LayerRules, bias: torch.Tensor | None) -> torch.Tensor:
    """[T, n]: what experts are chosen by, -inf for those left out; float32, for sparsemixer the logits' dtype."""
    choice = scores if bias is None else scores + bias
    choice = choice if rules.mask is None else choice + rules.mask.to(choice.dtype)
    return choice if spec.groups == 1 else in_groups(spec, choice)


def in_groups(spec: RouterSpec, choice: torch.Tensor) -> torch.Tensor:
    """The choice cut to the best groups. Experts left out count 0 in a group's sum; a group without any is -inf."""
    grouped = choice.view(len(choice), spec.groups, -1)
    if spec.group_score == "max":
        merit = grouped.amax(dim=-1)
    else:
        best = torch.topk(grouped, 2, dim=-1).values
        merit = (
            best.masked_fill(best == -torch.inf, 0.0).sum(dim=-1).masked_fill(best[..., 0] == -torch.inf, -torch.inf)
        )
    groups = torch.topk(merit, spec.chosen_groups, dim=-1, sorted=False).indices
    outside = torch.ones_like(merit, dtype=torch.bool).scatter_(-1, groups, False)
    cut: torch.Tensor = grouped.masked_fill(outside[..., None], 0.0 if spec.group_score == "max" else -torch.inf)
    return cut.view(choice.shape)


def _pick(
    spec: RouterSpec, choice: torch.Tensor, scores: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, count] weights and i64[T, count] experts of tokens that use so many ranks."""
    if spec.score == "sparsemixer":
        return mix(spec, choice, count)
    best, ids = torch.topk(choice, count, dim=-1, sorted=spec.ranked)
    weights = scores.gather(-1, ids) if spec.bias else best
    if spec.groups > 1:
        # The best groups may keep fewer experts than the layer does.
        none = best == -torch.inf
        weights, ids = weights.masked_fill(none, 0.0), ids.masked_fill(none, choice.shape[-1])
    if spec.score == "topk_softmax":
        weights = torch.softmax(weights, dim=-1)
    if spec.renormalise:
        # Kept experts may all have scores that underflow.
        floor = max(spec.floor, torch.finfo(torch.float32).tiny)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + spec.offset).clamp_min(floor)
    return weights * spec.scale if spec.scale != 1.0 else weights, ids


def mix(spec: RouterSpec, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best expert left, again and again, weighed by a softmax over what is left and nearly as good.

    Experts left out of ``logits`` (-inf) are no neighbours either: ``selection`` has no meaning of its own here.
    """
    left, weights, ids = logits, list[torch.Tensor](), list[torch.Tensor]()
    for _ in range(count):
        best, chosen = left.max(dim=-1, keepdim=True)
        far = (best - logits) / logits.abs().clamp(min=best) > 2 * spec.jitter
        weights.append(torch.softmax(left.masked_fill(far, -torch.inf), dim=-1).gather(-1, chosen))
        ids.append(chosen)
        left = left.scatter(-1, chosen, -torch.inf)
    return torch.cat(weights, dim=-1), torch.cat(ids, dim=-1)


def retained_share(spec: RouterSpec, share: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """f32[T]: how much of ``share`` [T, n], scores of all experts, lies on those that the mask (0 or -inf) keeps."""
    mass = kept_mass(share, mask)
    return mass / share.sum(dim=-1) if spec.score == "sigmoid" else mass


def kept_mass(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """f32[T]: the sum of ``scores`` [T, n], none below 0, of those that the mask (0 or -inf) keeps."""
    # No score is negative, so this takes out what the mask made -inf.
    return (scores + mask).clamp_min(0.0).sum(dim=-1)


class RestrictedRouter(nn.Module):
    """Stands in for a stock top-k router, whose parameters it takes over: rows of all n experts, kept or not.

    A layer with fewer experts than others has a router of fewer rows, and computes as such: nothing is padded. Ids
    become slots by the LUT; there, id n is as absent as any expert without a slot.
    """

    def __init__(
        self, layer: int, family: FamilySpec, spec: RouterSpec, stock: nn.Module, lut: torch.Tensor, state: StepState
    ) -> None:
        super().__init__()
        self.__dict__.update({part: stock.__dict__[part] for part in ("_parameters", "_buffers", "_modules")})
        self.layer, self.family, self.spec = layer, family, spec
        self._lut, self._state = lut, state

    def forward(self, hidden_states: torch.Tensor, correction: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Logits [T, n], weights [T, k] and, as ids, slots i64[T, k], in the order that the family's block expects.

        ``correction``: [n], where the block holds it and not the router.
        """
        state, tensors = self._state, self.family.router_tensors(self)
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        if self.layer == 0:
            state.take(hidden.shape[0])
        logits = router_logits(self.spec, hidden, tensors.weight, tensors.bias)
        dtype = hidden.dtype if self.spec.logits_dtype == "float32" else None
        bias = tensors.correction if correction is None else correction
        routing = route(self.spec, logits, state.layers[self.layer], bias=bias, dtype=dtype)
        state.masses[self.layer] = routing.mass
        if state.recorder is not None:
            state.recorder(self.layer, logits.float(), routing.ids, routing.weights)
        given = {"logits": logits, "weights": routing.weights, "ids": self._lut[routing.ids]}
        return tuple(given[name] for name in self.family.router_returns)
