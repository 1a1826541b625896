"""Right-padded batches of token sequences of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """``token_ids`` i64[B, T], padded on the right; ``valid`` bool[B, T]; ``indices`` say which sequences these are.

    Attention is causal, so real tokens never see the padding after them and need no attention mask.
    """

    indices: tuple[int, ...]
    token_ids: Tensor
    valid: Tensor


def plan_batches(lengths: Sequence[int], max_tokens: int = MAX_TOKENS) -> list[tuple[int, ...]]:
    """Group sequences by length so that no batch exceeds ``max_tokens`` with its padding (a longer one goes alone).

    Deterministic: the same lengths give the same batches.
    """
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if current and (len(current) + 1) * lengths[index] > max_tokens:
            batches.append(tuple(current))
            current = []
        current.append(index)
    return [*batches, tuple(current)] if current else batches


def pad(sequences: Sequence[Sequence[int]], indices: Sequence[int], *, device: torch.device | str = "cpu") -> Batch:
    """The batch of ``sequences[index]`` for every index; padding repeats token 0."""
    longest = max(len(sequences[index]) for index in indices)
    token_ids = torch.zeros(len(indices), longest, dtype=torch.long)
    valid = torch.zeros(len(indices), longest, dtype=torch.bool)
    for row, index in enumerate(indices):
        length = len(sequences[index])
        token_ids[row, :length] = torch.tensor(sequences[index], dtype=torch.long)
        valid[row, :length] = True
    return Batch(tuple(indices), token_ids.to(device), valid.to(device))
