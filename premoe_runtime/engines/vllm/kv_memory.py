"""KV memory of vLLM's core: as many blocks as so many contexts take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_utils import get_kv_cache_groups
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec, MambaSpec


class SizedCore(EngineCore):  # type: ignore[misc]
    """With KV memory for ``contexts`` whole contexts, where it is main memory."""

    def __init__(self, config: VllmConfig, executor: type[Executor], context: int, contexts: int) -> None:
        self._context, self._contexts = context, contexts
        if config.device_config.device_type == "cpu":
            # Anything at all: else vLLM wants most of main memory to be free.
            config.cache_config.kv_cache_memory_bytes = 1
        super().__init__(config, executor, log_stats=False)

    def _initialize_kv_caches(self, vllm_config: VllmConfig) -> KVCacheConfig:
        measure = self.model_executor.determine_available_memory

        def sized() -> list[int]:
            # Only now is the model there, and a block of the size that its layers with state want.
            self._size(vllm_config)
            found: list[int] = measure()
            return found

        # vLLM asks for it once it has chosen the layout that the size of a block depends on.
        self.model_executor.determine_available_memory = sized
        return super()._initialize_kv_caches(vllm_config)

    def _size(self, config: VllmConfig) -> None:
        cache = config.cache_config
        if config.device_config.device_type == "cpu":
            groups = get_kv_cache_groups(config, self.model_executor.get_kv_cache_specs()[0])
            blocks = 1 + self._contexts * blocks_of([group.kv_cache_spec for group in groups], self._context)
            block_bytes = max(len(group.layer_names) * group.kv_cache_spec.page_size_bytes for group in groups)
            cache.num_gpu_blocks_override, cache.kv_cache_memory_bytes = blocks, blocks * block_bytes


def blocks_of(specs: Sequence[KVCacheSpec], tokens: int) -> int:
    """Of a sequence: vLLM gives each kind of layers blocks of their own, one to those that keep state."""
    return sum(1 if isinstance(spec, MambaSpec) else math.ceil(tokens / spec.block_size) for spec in specs)
