"""Integer weights back to floats: words unpacked, zero points taken off, times the scales. Torch.

Weights are [out, in], whichever way round a format stores them. A value is (stored - zero point) · scale, rounded once,
to the dtype of the scales: differences of 8-bit integers are exact in every dtype that scales have.
"""

from __future__ import annotations

import torch

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ's the columns 0 to 7 lie."""


def unpacked(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """uint8[n, count] of i32[n, w], lowest bits first; ``bits`` is 4 or 8, so that no value crosses a byte."""
    octets = words.contiguous().view(torch.uint8)
    if bits == 4:
        pairs = octets.new_empty((*octets.shape, 2))  # filled in place: half the time of stacking
        pairs[..., 0] = octets & 15
        pairs[..., 1] = octets >> 4
        octets = pairs.flatten(-2)
    return octets[:, :count]


def unpacked_awq(words: torch.Tensor) -> torch.Tensor:
    """uint8[8 w, n] of i32[n, w] in AWQ's order: turned, so that columns become rows."""
    turned = words.T.contiguous()
    eights = torch.empty((len(turned), len(AWQ_ORDER), len(words)), dtype=torch.uint8, device=words.device)
    for column, place in enumerate(AWQ_ORDER):
        eights[:, column] = (turned >> 4 * place) & 15
    return eights.flatten(0, 1)


def weights(
    values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | int, groups: torch.Tensor | None = None
) -> torch.Tensor:
    """Of integers [out, in], ``scales`` [out, G] and integers ``zeros`` [out, G], or one for all.

    ``groups``: [in], the group of every column; None where groups are runs of in / G columns.
    """
    zeros = zeros.to(scales.dtype) if isinstance(zeros, torch.Tensor) else zeros
    if groups is not None and not _are_runs(groups, scales.shape[1]):
        index = groups.long().clamp(0, scales.shape[1] - 1)  # packing refuses others; a forged pack must not end us
        found = values.to(scales.dtype)
        found -= zeros[:, index] if isinstance(zeros, torch.Tensor) else zeros
        return found.mul_(scales[:, index])
    runs = values.to(scales.dtype).reshape(*scales.shape, -1)
    runs -= zeros[..., None] if isinstance(zeros, torch.Tensor) else zeros
    return runs.mul_(scales[..., None]).flatten(-2)


def _are_runs(groups: torch.Tensor, count: int) -> bool:
    """Whether groups are equal runs of neighbours, or were never set (-1), which means the same."""
    if int(groups[0]) < 0:
        return True
    size, left = divmod(len(groups), count)
    runs = torch.arange(count, dtype=groups.dtype, device=groups.device).repeat_interleave(size)
    return not left and torch.equal(groups, runs)
