"""Rotary factors that depend on how long a sequence is: in a step each sequence has those of its own length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

_LENGTHS: ContextVar[Sequence[int] | None] = ContextVar("lengths", default=None)


@contextmanager
def lengths(each: Sequence[int]) -> Iterator[None]:
    """While open, and in this thread: how many tokens each sequence of the forwards has, computed or not."""
    token = _LENGTHS.set(each)
    try:
        yield
    finally:
        _LENGTHS.reset(token)


def follow_lengths(rotary: nn.Module) -> None:
    """Let a stock rotary embedding, which goes by a batch's highest position, go by ``lengths`` where they are set.

    Other forwards are its own, bit for bit.
    """
    whole = rotary.forward

    def forward(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        each = _LENGTHS.get()
        if each is None:
            found: tuple[torch.Tensor, ...] = whole(x, position_ids=position_ids)
            return found
        rows = []
        for row, length in zip(position_ids, each, strict=True):
            # The sequence's last position goes along, for the class to see, and out again.
            told = torch.cat([row, row.new_tensor([length - 1])])[None]
            rows.append([part[:, :-1] for part in whole(x, position_ids=told)])
        return tuple(torch.cat(part) for part in zip(*rows, strict=True))

    rotary.forward = forward
