"""vLLM's arguments for an engine over slots: ours, the caller's, and those that would break slots."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from premoe_runtime.engines.vllm.plan import LOAD_FORMAT, SlotPlan
from premoe_runtime.formats.errors import InvalidInput

WORKER = "premoe_runtime.engines.vllm.worker.SlotWorker"
OURS = ("model", "load_format", "worker_extension_cls", "additional_config", "enable_expert_parallel")
"""Arguments that no caller may give."""
SETTINGS: Mapping[str, str] = {
    "dtype": "the pack says it",
    "tokenizer": "the pack has it",
    "generation_config": "the pack has it",
    "max_model_len": "the setting context_length says it",
    "max_num_seqs": "the setting max_sequences says it",
    "max_num_batched_tokens": "the engine chooses it",
    "long_prefill_token_threshold": "the engine chooses it",
    "num_gpu_blocks_override": "the settings context_length and max_sequences decide it",
    "kv_cache_memory_bytes": "the settings context_length and max_sequences decide it",
    "async_scheduling": "commands are carried out between two steps",
    "scheduler_cls": "commands are carried out between its steps",
    "worker_cls": "slots lie in vLLM's own",
    "distributed_executor_backend": "every device has a process of the engine's own",
    "skip_tokenizer_init": "texts are made outside",
    "logits_processors": "tokens are chosen outside",
    "logprobs_mode": "tokens are chosen outside",
    "max_logprobs": "tokens are chosen outside",
    "enable_return_routed_experts": "its answers name slots",
    "kv_transfer_config": "its keys and values do not name the pattern under which they were computed",
}
"""Arguments that no caller of the engine behind the port may give, and why."""
REFUSED: Mapping[str, str] = {
    "quantization": "experts are computed with as the pack holds them",
    "enable_eplb": "it moves experts between slots of its own",
    "enable_lora": "adapters of experts do not move with their slots",
    "speculative_config": "a draft's tokens have no mask row",
    "enable_sleep_mode": "it drops weights that the tables still name",
    "trust_remote_code": "code of a checkpoint is never run",
    "cpu_offload_gb": "weights would leave their fixed addresses",
}
"""Arguments that break slots unless they are off, and why."""
UNSALTED = "its keys do not name the pattern under which keys and values were computed"
"""Why there is no prefix caching but for requests whose ``cache_salt`` names it, as the engine's do."""
REFUSED_ABOVE_ONE: Mapping[str, str] = {
    "pipeline_parallel_size": "slots of a layer are shared out over all devices",
    "data_parallel_size": "a replica is a process of its own; run another one",
    "prefill_context_parallel_size": "all devices compute the same tokens",
    "decode_context_parallel_size": "all devices compute the same tokens",
}
RANKS = "tensor_parallel_size"
"""Of which there may be several: attention is split over them, and each has whole experts."""


def arguments(folder: Path, plan: SlotPlan, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Of vLLM's ``LLM`` or ``EngineArgs``. ``folder``: of ``hf.tokenizer.skeleton_folder``. Raises InvalidInput."""
    given = _checked(given or {}, dict.fromkeys(OURS, ""), {**REFUSED, "enable_prefix_caching": UNSALTED})
    return {**given, **_of_slots(folder, plan), **_of_ranks(given), "enable_prefix_caching": False}


def engine_arguments(
    folder: Path,
    plan: SlotPlan,
    given: Mapping[str, Any] | None,
    *,
    dtype: str,
    context: int,
    max_sequences: int,
    prefill_tokens: int,
) -> dict[str, Any]:
    """Those of the engine behind the port, which salts prefixes; eager unless the caller says otherwise."""
    given = check_given(given or {})
    several = {"distributed_executor_backend": "external_launcher"} if ranks_in(given) > 1 else {}
    return {
        "enforce_eager": True,
        "enable_prefix_caching": True,
        **given,
        **_of_slots(folder, plan),
        **_of_ranks(given),
        **several,
        "dtype": dtype,
        "generation_config": "vllm",
        "max_model_len": context,
        "max_num_seqs": max_sequences,
        # A piece of a prompt beside a token for everybody.
        "max_num_batched_tokens": prefill_tokens + max_sequences,
        "long_prefill_token_threshold": prefill_tokens,
        "enable_chunked_prefill": True,
        "async_scheduling": False,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
    }


def check_given(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller of the engine behind the port gives. Raises InvalidInput."""
    return _checked(given, {**dict.fromkeys(OURS, ""), **SETTINGS}, REFUSED)


def ranks_in(given: Mapping[str, Any]) -> int:
    """Of what a caller gives: on how many devices the engine runs. Raises InvalidInput."""
    ranks = given.get(RANKS, 1)
    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
        raise InvalidInput(
            f"vLLM's argument {RANKS}={ranks!r} is no number of devices; give 1 or more", reason="ENGINE_ARGUMENT"
        )
    return ranks


def _of_ranks(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"enable_expert_parallel": ranks_in(given) > 1}


def _of_slots(folder: Path, plan: SlotPlan) -> dict[str, Any]:
    return {
        "model": str(folder),
        "load_format": LOAD_FORMAT,
        "worker_extension_cls": WORKER,
        "additional_config": plan.config(),
    }


def _checked(given: Mapping[str, Any], ours: Mapping[str, str], refused: Mapping[str, str]) -> dict[str, Any]:
    given = dict(given)
    for name in _in(given, ours):
        why = f" ({ours[name]})" if ours[name] else ""
        raise InvalidInput(f"vLLM's argument {name} is set by PreMoE{why}; leave it out", reason="ENGINE_ARGUMENT")
    wrong = {name: why for name, why in refused.items() if given.get(name)}
    wrong |= {name: why for name, why in REFUSED_ABOVE_ONE.items() if given.get(name, 1) != 1}
    for name, why in wrong.items():
        raise InvalidInput(
            f"vLLM's argument {name}={given[name]} does not go with slots: {why}; leave it out",
            reason="ENGINE_ARGUMENT",
        )
    return given


def _in(given: Mapping[str, Any], names: Collection[str]) -> list[str]:
    return [name for name in given if name in names]
