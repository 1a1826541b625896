"""Attention that reads keys and values where they lie: no copy per query head, no padding to the longest sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "premoe_rows"
"""What the slot model's config says; forwards without ``reading`` run transformers' own ``sdpa``, bit for bit."""
ANOTHER_CALL = 256
"""Columns times queries whose attention costs about as much as one more call."""


@dataclass(frozen=True, slots=True)
class Span:
    """Sequences whose KV rows are neighbours, attended together.

    ``batch``: their places in the step; ``rows`` and ``columns``: of the pool. ``mask``: dtype[n, 1, G * T, columns],
    0 or -inf, for the G query heads of a KV head; without it every query sees all columns, or those up to its own
    place (``causal``).
    """

    batch: slice
    rows: slice
    columns: slice
    mask: torch.Tensor | None = None
    causal: bool = False


@dataclass
class Reading:
    """What the queries of one step may see. All sequences have ``width`` queries; those of sequence i stand at
    ``positions[i]``: i64[B, T] on the host, ascending. ``groups``: query heads of a KV head.
    """

    rows: Sequence[int]
    positions: torch.Tensor
    groups: int
    dtype: torch.dtype
    device: torch.device
    _spans: dict[int | None, list[Span]] = field(default_factory=dict)

    def spans(self, window: int | None) -> list[Span]:
        """Of a layer whose queries see the last ``window`` columns up to their own (None: all); made once a step."""
        if window not in self._spans:
            cuts = neighbours(self.rows, (self.positions[:, -1] + 1).tolist(), self.positions.shape[1])
            self._spans[window] = [self._span(cut, window) for cut in cuts]
        return self._spans[window]

    def _span(self, batch: slice, window: int | None) -> Span:
        positions = self.positions[batch]
        low, high = int(positions[:, 0].min()), int(positions[:, -1].max())
        first = 0 if window is None else max(0, low - window + 1)
        rows = slice(self.rows[batch.start], self.rows[batch.stop - 1] + 1)
        columns = slice(first, high + 1)
        width = positions.shape[1]
        if width == 1 and low == high:
            return Span(batch, rows, columns)
        if high == width - 1 and bool((positions == torch.arange(width)).all()) and high < (window or high + 1):
            return Span(batch, rows, columns, causal=True)
        mask = attention_mask(positions.to(self.device), columns, dtype=self.dtype, window=window)
        # Query heads of one KV head follow each other: seen as more queries of that head, they need no copy of it.
        folded = mask[:, :, None].expand(-1, -1, self.groups, -1, -1).flatten(2, 3)
        return Span(batch, rows, columns, folded)


def neighbours(rows: Sequence[int], lengths: Sequence[int], width: int) -> list[slice]:
    """Cut a step's sequences, in this order, into those that are attended in one call.

    Rows must follow each other, so that they are read without a copy; and a row is not read far past its own length
    (``lengths``, in columns; ``width`` queries each) just to spare a call.
    """
    cuts: list[slice] = []
    start = longest = 0
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        count = index - start
        padded = (count + 1) * max(longest, length) - count * longest - length
        if count and (row != rows[index - 1] + 1 or padded * width > ANOTHER_CALL):
            cuts.append(slice(start, index))
            start, longest = index, 0
        longest = max(longest, length)
    return [*cuts, slice(start, len(rows))]


def visible(positions: torch.Tensor, columns: slice, window: int | None) -> torch.Tensor:
    """bool[..., columns]: whether queries at ``positions`` (i64[...]) see a column: up to their own, in a window."""
    at = torch.arange(columns.start, columns.stop, device=positions.device)
    seen = at <= positions[..., None]
    if window is not None:
        seen &= at > positions[..., None] - window
    return seen


def window_of(module: nn.Module, stated: int | None) -> int | None:
    """Sliding window of an attention module: some classes hand it on, others keep it; 0 is none."""
    return stated or getattr(module, "sliding_window", None) or None


def attention_mask(
    positions: torch.Tensor, columns: slice, *, dtype: torch.dtype, window: int | None = None
) -> torch.Tensor:
    """0 where a query sees a column, -inf elsewhere; columns are positions.

    ``positions``: i64[B, T] of the queries. Returns dtype[B, 1, T, columns].
    """
    seen = visible(positions, columns, window)
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~seen, float("-inf")).unsqueeze(1)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    reading: Reading | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as transformers calls it. ``query``: [B, H, T, D]; returns [B, T, H, D].

    With ``reading``, ``key`` and ``value`` are a layer of the pool, [rows, KV heads, context, D], which holds this
    step's tokens already. ``s_aux`` [H]: sinks, for which there is no fused kernel on every device.
    """
    if reading is None and s_aux is not None:
        seen = attention_mask
        if seen is None and query.shape[2] > 1:
            seen = visible(torch.arange(query.shape[2], device=query.device), slice(0, key.shape[2]), None)
        return with_sinks(query, key, value, seen, kwargs["scaling"], s_aux), None
    if reading is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return found
    window = window_of(module, kwargs.get("sliding_window"))
    parts = [_attend(query, key, value, span, kwargs["scaling"], s_aux) for span in reading.spans(window)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)), None


def with_sinks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor | None,
    scaling: float | None,
    sinks: torch.Tensor,
) -> torch.Tensor:
    """Attention where each head also attends to a sink without a value, in the order of GPT-OSS's own class.

    ``seen``: bool, broadcast over [B, H, T, columns]; None: everything. Returns [B, T, H, D].
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (half.repeat_interleave(groups, dim=1) for half in (key, value))
    weights = torch.matmul(query, key.transpose(2, 3)) * (scaling or query.shape[-1] ** -0.5)
    if seen is not None:
        weights = weights.masked_fill(~seen, float("-inf"))
    sink = sinks.reshape(1, -1, 1, 1).expand(query.shape[0], -1, query.shape[2], -1)
    weights = torch.cat([weights, sink], dim=-1)
    shares = torch.softmax(weights - weights.max(dim=-1, keepdim=True).values, dim=-1)[..., :-1]
    return torch.matmul(shares, value).transpose(1, 2).contiguous()


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    span: Span,
    scaling: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    query = query[span.batch]
    key, value = (half[span.rows, :, span.columns] for half in (key, value))
    sequences, heads, width, _ = query.shape
    if sinks is not None:
        seen = None if span.mask is None else span.mask[:, :, :width] == 0
        if span.causal:
            seen = torch.ones(width, width, dtype=torch.bool, device=query.device).tril_()
        return with_sinks(query, key, value, seen, scaling, sinks)
    if span.causal:
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=width > 1, scale=scaling, enable_gqa=heads != key.shape[1]
        )
    else:
        folded = query.reshape(sequences, key.shape[1], -1, query.shape[-1])
        attended = nn.functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=span.mask, scale=scaling
        ).reshape(sequences, heads, width, -1)
    return attended.transpose(1, 2)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
