"""Causal attention of long prompts, a block of queries at a time: nothing in memory is tokens × tokens."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from premoe_runtime.engines.hf.attention import visible, window_of, with_sinks

QUERY_BLOCK = 512
_NAME = "premoe_blockwise"


def blockwise(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: each query sees itself and what came before, at most its window.

    ``query``: [B, H, T, D]; ``key``, ``value``: [B, G, T, D], each for H / G heads. Returns [B, T, H, D].
    """
    window = window_of(module, sliding_window)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and s_aux is None:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    attended = []
    for start in range(0, query.shape[2], QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, query.shape[2])
        first = 0 if window is None else max(0, start - window + 1)
        seen = visible(torch.arange(start, end, device=query.device), slice(first, end), window)
        block = query[:, :, start:end], key[:, :, first:end], value[:, :, first:end]
        if s_aux is not None:
            attended.append(with_sinks(*block, seen, scaling, s_aux).transpose(1, 2))
        else:
            attended.append(nn.functional.scaled_dot_product_attention(*block, attn_mask=seen, scale=scaling))
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, blockwise)


def with_blockwise(attention: nn.Module) -> nn.Module:
    """A copy of an attention module that attends block by block; weights and submodules are the original's."""
    config: Any = copy.copy(attention.config)
    config._attn_implementation = _NAME
    made: nn.Module = object.__new__(type(attention))
    made.__dict__ = {**attention.__dict__, "config": config}
    return made
