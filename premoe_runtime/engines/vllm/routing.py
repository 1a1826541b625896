"""The restricted router in vLLM's own order of arithmetic, so that it equals vLLM's masked router bit for bit.

``engines.hf.router`` computes in the order of transformers, which differs in last bits for a softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from premoe_runtime.engines.hf.router import in_groups, kept_mass, mix
from premoe_runtime.formats.manifest import RouterSpec

_LOG2_E = 1 / math.log(2)


def choose(
    spec: RouterSpec,
    logits: torch.Tensor,
    mask: torch.Tensor,
    sliced: torch.Tensor,
    *,
    top_k: int,
    bias: torch.Tensor | None = None,
    of_scores: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """f32[T, k] weights and i64[T, k] experts, of a router at full width.

    ``logits``: [T, E]; ``mask``: f32[T, E], 0 or -inf; ``sliced``: bool[T, 1], whose weights count kept experts only;
    ``bias``: [E], the correction where the family has one; ``of_scores``: vLLM's router is one that chooses by scores
    where it could by logits. Picks of weight 0 may be experts that are left out.
    """
    kept = mask.to(logits.dtype)
    if spec.score == "sparsemixer":
        # With nothing kept, as while vLLM measures memory before any expert is here, a softmax is no number.
        weights, experts = mix(spec, logits + kept, top_k)
        weights = weights.masked_fill(mask.gather(-1, experts) == -torch.inf, 0.0)
    elif spec.score == "sigmoid" or bias is not None or spec.groups > 1 or of_scores:
        weights, experts, picked = _by_scores(spec, logits.float(), mask, sliced, top_k=top_k, bias=bias)
        weights = _normalised(spec, weights.masked_fill(picked == -torch.inf, 0.0))
    else:
        weights, experts, picked = _by_logits(spec, logits, kept, sliced, top_k)
        weights = weights.masked_fill(picked == -torch.inf, 0.0)
    return _scaled(spec, weights), experts


def _by_logits(
    spec: RouterSpec, logits: torch.Tensor, mask: torch.Tensor | None, sliced: torch.Tensor | bool, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, experts, and by what these were picked."""
    kept = logits if mask is None else logits + mask
    picked, experts = torch.topk(kept, top_k, dim=-1, sorted=False)
    if spec.renormalise or spec.score == "topk_softmax":
        weights = torch.softmax(picked, dim=-1)
    else:
        weights = (picked - torch.logsumexp(_counted(logits, kept, sliced), dim=-1, keepdim=True)).exp()
    return weights, experts, picked


def _by_scores(
    spec: RouterSpec,
    logits: torch.Tensor,
    mask: torch.Tensor | None,
    sliced: torch.Tensor | bool,
    *,
    top_k: int,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same; the weights are not normalised yet."""
    if spec.score == "sigmoid":
        scores = logits.sigmoid()  # both semantics are the same: no sigmoid knows of its neighbours
    else:
        scores = torch.softmax(_counted(logits, logits if mask is None else logits + mask, sliced), dim=-1)
    choice = scores if bias is None else scores + bias
    if mask is not None:
        choice = choice + mask
    if spec.groups > 1:
        choice = in_groups(spec, choice)
    picked, experts = torch.topk(choice, top_k, dim=-1, sorted=False)
    return picked if bias is None else scores.gather(-1, experts), experts, picked


def _counted(logits: torch.Tensor, kept: torch.Tensor, sliced: torch.Tensor | bool) -> torch.Tensor:
    """What a token's weights are shares of; ``sliced``: of its own, or of all tokens."""
    if isinstance(sliced, bool):
        return kept if sliced else logits
    return torch.where(sliced, kept, logits)


def _normalised(spec: RouterSpec, weights: torch.Tensor) -> torch.Tensor:
    if not spec.renormalise:
        return weights
    return weights / weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _scaled(spec: RouterSpec, weights: torch.Tensor) -> torch.Tensor:
    return weights.float() * spec.scale if spec.scale != 1.0 else weights.float()


def choose_kept(
    spec: RouterSpec,
    logits: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    sliced: bool,
    top_k: int,
    bias: torch.Tensor | None = None,
    of_scores: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``choose``, bit for bit, where every token keeps ``top_k`` experts or more: none of its picks is left out.

    ``mask``: f32[T or 1, E]; None: all are kept. Of no sparse mixer, and without groups, of which the chosen ones may
    keep fewer.
    """
    if spec.score == "sigmoid" or bias is not None or of_scores:
        weights, experts, _ = _by_scores(spec, logits.float(), mask, sliced, top_k=top_k, bias=bias)
        weights = _normalised(spec, weights)
    else:
        weights, experts, _ = _by_logits(spec, logits, None if mask is None else mask.to(logits.dtype), sliced, top_k)
    return _scaled(spec, weights), experts


def choose_for(
    spec: RouterSpec,
    logits: torch.Tensor,
    mask: torch.Tensor,
    sliced: torch.Tensor,
    widths: Sequence[int],
    active: torch.Tensor,
    *,
    top_k: int,
    bias: torch.Tensor | None = None,
    of_scores: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``choose`` for tokens that use different numbers of experts, each of ``widths``; ``active``: i64[T], which one.

    A token has, bit for bit, what a router of that top-k gives it; what it leaves of ``top_k`` is weight 0 for none.
    """
    if tuple(widths) == (top_k,):
        return choose(spec, logits, mask, sliced, top_k=top_k, bias=bias, of_scores=of_scores)
    weights = torch.zeros(len(logits), top_k, device=logits.device)
    experts = torch.full_like(weights, logits.shape[-1], dtype=torch.int64)
    for width in widths:
        found, chosen = choose(spec, logits, mask, sliced, top_k=width, bias=bias, of_scores=of_scores)
        of_these = (active == width)[:, None]
        weights[:, :width] = torch.where(of_these, found, weights[:, :width])
        experts[:, :width] = torch.where(of_these, chosen, experts[:, :width])
    return weights, experts


def retained(spec: RouterSpec, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """f32[T]: the share of the full router's scores that lies on kept experts."""
    values = logits.float()
    if spec.score == "sigmoid":
        scores = values.sigmoid()
    else:
        # Up to a factor a softmax. Torch's own, and its exp, wake every thread for a few tokens and wait for them.
        scores = ((values - values.amax(dim=-1, keepdim=True)) * _LOG2_E).exp2()
    return (kept_mass(scores, mask) / scores.sum(dim=-1)).clamp(max=1.0)


def slot_map(share: range, experts: int) -> torch.Tensor:
    """i32[E] for vLLM's kernels, which take slots for experts: where on this rank a slot lies, -1 where on another."""
    found = torch.full((experts,), -1, dtype=torch.int32)
    found[share.start : share.stop] = torch.arange(len(share), dtype=torch.int32)
    return found


def local_slots(share: range, weights: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weights`` and ``slots``, [T, k], of a rank whose kernel knows no slots of others: those have weight 0 here, and
    stand for one of this rank that the token uses anyway, or for any.
    """
    here = (slots >= share.start) & (slots < share.stop)
    local = torch.where(here, slots - share.start, len(share) - 1)
    used = local.amin(dim=-1, keepdim=True)
    return weights.masked_fill(~here, 0.0), torch.where(here, local, used)


def slots_of(lut: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """i64[T, k] of slots, all of them real. ``lut``: i64[E + 1], whose last entry is the number that means absent.

    Picks without a slot have weight 0 and go to one that the token uses anyway: kernels know no "no expert", and
    nobody writes to that slot meanwhile.
    """
    absent = lut[-1]
    slots = lut[experts]
    used = slots.amin(dim=-1, keepdim=True)
    return torch.minimum(torch.where(slots == absent, used, slots), absent - 1)
