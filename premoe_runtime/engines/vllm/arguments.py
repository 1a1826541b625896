"""vLLM's arguments for an engine over slots: ours, the caller's, and those that would break slots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from premoe_runtime.engines.vllm.plan import LOAD_FORMAT, SlotPlan
from premoe_runtime.formats.errors import InvalidInput

WORKER = "premoe_runtime.engines.vllm.worker.SlotWorker"
OURS = ("model", "load_format", "worker_extension_cls", "additional_config")
"""Arguments that no caller may give."""
REFUSED: Mapping[str, str] = {
    "quantization": "experts are computed with as the pack holds them",
    "enable_eplb": "it moves experts between slots of its own",
    "enable_expert_parallel": "slots lie on one device",
    "enable_lora": "adapters of experts do not move with their slots",
    "speculative_config": "a draft's tokens have no mask row",
    "enable_sleep_mode": "it drops weights that the tables still name",
    "trust_remote_code": "code of a checkpoint is never run",
    "enable_prefix_caching": "its keys do not name the pattern under which keys and values were computed",
    "cpu_offload_gb": "weights would leave their fixed addresses",
}
"""Arguments that break slots unless they are off, and why."""
REFUSED_ABOVE_ONE: Mapping[str, str] = {
    "tensor_parallel_size": "slots lie on one device",
    "pipeline_parallel_size": "slots lie on one device",
    "data_parallel_size": "slots lie on one device; run another replica",
}


def arguments(folder: Path, plan: SlotPlan, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Of vLLM's ``LLM`` or ``EngineArgs``. ``folder``: of ``hf.tokenizer.skeleton_folder``. Raises InvalidInput."""
    given = dict(given or {})
    for name in OURS:
        if name in given:
            raise InvalidInput(f"vLLM's argument {name} is set by PreMoE; leave it out", reason="ENGINE_ARGUMENT")
    wrong = {name: why for name, why in REFUSED.items() if given.get(name)}
    wrong |= {name: why for name, why in REFUSED_ABOVE_ONE.items() if given.get(name, 1) != 1}
    for name, why in wrong.items():
        raise InvalidInput(
            f"vLLM's argument {name}={given[name]} does not go with slots: {why}; leave it out",
            reason="ENGINE_ARGUMENT",
        )
    return {
        **given,
        "model": str(folder),
        "load_format": LOAD_FORMAT,
        "worker_extension_cls": WORKER,
        "additional_config": plan.config(),
        "enable_prefix_caching": False,
    }
