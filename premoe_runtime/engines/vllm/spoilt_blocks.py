"""Blocks of the KV cache that hold what is no number, after weights were damaged: nobody may read them again."""

from __future__ import annotations

from typing import Any

import torch


class SpoiltBlocks:
    """Of one core. ``cache``: vLLM's KV cache manager; ``runner``: its model runner.

    It is not enough that prefixes do not find them: a kernel may multiply what lies behind a sequence's last token
    by zero (that for CPUs does), and NaN times zero is NaN in the answer of whoever gets the block next.
    """

    def __init__(self, cache: Any, runner: Any) -> None:
        self._cache, self._runner = cache, runner
        self._blocks: set[int] = set()

    def spoil(self, request: str) -> None:
        """All that a request holds, which still has them."""
        found = {block for group in self._cache.get_block_ids(request) for block in group}
        self._cache.evict_blocks(found)
        self._blocks |= found

    def wipe(self) -> None:
        """Between two steps: write over those that nobody holds any more."""
        free = [block for block in self._blocks if not self._cache.block_pool.blocks[block].ref_cnt]
        if not free:
            return
        if self._runner.device.type != "cpu":
            if not hasattr(self._runner, "_kv_block_zeroer"):
                self._runner._init_kv_zero_meta()
            self._runner._zero_block_ids(free)
        else:
            # By hand: the runner for CPUs passes over layers with windows.
            for layer in self._runner.compilation_config.static_forward_context.values():
                kept = getattr(layer, "kv_cache", ())
                for kv in (kept,) if isinstance(kept, torch.Tensor) else kept:
                    kv[free] = 0
        self._blocks.difference_update(free)
