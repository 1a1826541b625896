"""The restricted router in vLLM's own order of arithmetic, so that it equals vLLM's masked router bit for bit.

``engines.hf.router`` computes in the order of transformers. For a sigmoid with groups that is vLLM's too; for a softmax
the two differ in last bits.
"""

from __future__ import annotations

import torch

from premoe_runtime.engines.hf.router import route
from premoe_runtime.engines.hf.step_state import ALL_TOKENS, LayerRules
from premoe_runtime.formats.manifest import RouterSpec


def choose(
    spec: RouterSpec,
    logits: torch.Tensor,
    mask: torch.Tensor,
    sliced: torch.Tensor,
    *,
    top_k: int,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """f32[T, k] weights and i64[T, k] experts, E for none, of a router at full width.

    ``logits``: [T, E]; ``mask``: f32[T, E], 0 or -inf; ``sliced``: bool[T, 1], whose weights count kept experts only;
    ``bias``: [E], the correction where the family has one. Picks of weight 0 may be experts that are left out.
    """
    if spec.score == "sigmoid":
        # Both semantics are the same: no sigmoid knows of its neighbours.
        routing = route(spec, logits, LayerRules(mask, False, ((top_k, ALL_TOKENS),)), bias=bias)
        return routing.weights.float(), routing.ids
    renormalise = spec.renormalise or spec.score == "topk_softmax"
    return _softmax(logits, mask, sliced, top_k=top_k, renormalise=renormalise)


def _softmax(
    logits: torch.Tensor, mask: torch.Tensor, sliced: torch.Tensor, *, top_k: int, renormalise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    kept = logits + mask.to(logits.dtype)
    picked, experts = torch.topk(kept, top_k, dim=-1, sorted=False)
    if renormalise:
        weights = torch.softmax(picked, dim=-1)
    else:
        counted = torch.where(sliced, kept, logits)
        weights = (picked - torch.logsumexp(counted, dim=-1, keepdim=True)).exp()
    # With nothing kept, as while vLLM measures memory before any expert is here, a softmax is no number.
    return weights.masked_fill(picked == -torch.inf, 0.0).float(), experts


def slots_of(lut: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """i64[T, k] of slots, all of them real. ``lut``: i64[E + 1], whose last entry is the number that means absent.

    Picks without a slot have weight 0 and go to one that the token uses anyway: kernels know no "no expert", and
    nobody writes to that slot meanwhile.
    """
    absent = lut[-1]
    slots = lut[experts]
    used = slots.amin(dim=-1, keepdim=True)
    return torch.minimum(torch.where(slots == absent, used, slots), absent - 1)
