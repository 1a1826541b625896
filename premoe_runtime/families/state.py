"""What a transformer block keeps of a sequence where it does not keep keys and values: tensors of a fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STATEFUL = frozenset({"conv", "linear_attention"})
"""Kinds of blocks, in the words of transformers' ``layer_types``."""


@dataclass(frozen=True, slots=True)
class Held:
    """One tensor of one sequence; in the model's dtype unless ``float32``."""

    shape: tuple[int, ...]
    float32: bool = False


@dataclass(frozen=True, slots=True)
class BlockState:
    """Of one stateful block: the window of its convolution, and what it sums up; None where it has none.

    ``whole_prompts``: its class drops the sum where a prompt goes on after its first piece, so prompts are never cut.
    """

    window: Held | None = None
    recurrent: Held | None = None
    whole_prompts: bool = False

    def num_bytes(self, item: int) -> int:
        """Of one sequence in one block; ``item``: bytes of a number in the model's dtype."""
        total = 0
        for held in (self.window, self.recurrent):
            if held is not None:
                count = 4 if held.float32 else item
                for size in held.shape:
                    count *= size
                total += count
        return total


def stateful_blocks(config: Any) -> Sequence[int]:
    """Blocks of a stock configuration that keep such state."""
    return [block for block, kind in enumerate(getattr(config, "layer_types", None) or ()) if kind in STATEFUL]
