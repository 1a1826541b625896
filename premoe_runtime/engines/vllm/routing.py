"""The restricted router in vLLM's own order of arithmetic, so that it equals vLLM's masked router bit for bit.

``engines.hf.router`` computes the same in the order of transformers; the two differ in last bits.
"""

from __future__ import annotations

import torch


def choose(
    logits: torch.Tensor, mask: torch.Tensor, sliced: torch.Tensor, *, top_k: int, renormalise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """f32[T, k] weights and i64[T, k] experts of a softmax router at full width.

    ``logits``: [T, E]; ``mask``: f32[T, E], 0 or -inf; ``sliced``: bool[T, 1]. Where a token keeps fewer than k, the
    other picks are experts that are left out, of weight 0. Under ``selection`` weights are shares of all experts; a
    token that is ``sliced`` counts the kept ones only. Renormalised, both are the same.
    """
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
