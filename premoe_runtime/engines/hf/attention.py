"""Attention masks over columns that are positions."""

from __future__ import annotations

import torch


def attention_mask(
    positions: torch.Tensor, length: int, *, dtype: torch.dtype, window: int | None = None
) -> torch.Tensor:
    """0 where a query sees a column, -inf elsewhere; columns are positions.

    ``positions``: i64[B, T] of the queries. Returns dtype[B, 1, T, length]. With a sliding ``window`` a query sees the
    last ``window`` columns up to its own.
    """
    columns = torch.arange(length, device=positions.device)
    seen = columns <= positions[..., None]
    if window is not None:
        seen &= columns > positions[..., None] - window
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~seen, float("-inf")).unsqueeze(1)
