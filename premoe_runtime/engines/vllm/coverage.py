"""Which models the plug-in runs: what the tests hold against stock vLLM. Everything else is refused by name."""

from __future__ import annotations

from collections.abc import Mapping

from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest, RouterSpec

FAMILIES = ("qwen3_moe",)


def check_covered(manifest: Manifest) -> None:
    """Raise InvalidInput (ENGINE_UNSUPPORTED) for a model that vLLM would not run as the pack means it."""
    fault = _fault(manifest)
    if fault:
        raise InvalidInput(
            f"the engine vllm does not run this {manifest.family} model: {fault}; use the engine hf",
            reason="ENGINE_UNSUPPORTED",
        )


def _fault(manifest: Manifest) -> str | None:
    if fault := router_fault(manifest.router):
        return fault
    if manifest.family not in FAMILIES:
        return f"only {', '.join(FAMILIES)} were held against stock vLLM"
    if manifest.numbers is not None:
        return f"its weights are stored as {manifest.numbers.method}, which is not swapped in place yet"
    if len(set(manifest.layer_experts)) > 1:
        return f"its layers have different numbers of experts ({slots_text(manifest.layer_experts)})"
    names = [field.name for field in manifest.layout.fields]
    return None if names == ["gate_up", "down"] else f"its experts hold {', '.join(names)}, not gate_up and down alone"


def router_fault(spec: RouterSpec) -> str | None:
    """What of a router's arithmetic the restricted router does not do; None: nothing."""
    if spec.score != "softmax":
        return f"its router scores by {spec.score}"
    if spec.bias:
        return "its router chooses by a correction bias"
    if spec.groups > 1:
        return "its router chooses within groups"
    if spec.scale != 1.0:
        return "its router scales its weights"
    return None


def stock_router_fault(stock: object, manifest: Manifest) -> str | None:
    """Where vLLM's own router of a layer is another than the pack's; None: nowhere."""
    expected: Mapping[str, object] = {
        "top_k": manifest.top_k,
        "global_num_experts": manifest.num_experts,
        "renormalize": manifest.router.renormalise,
        "scoring_func": "softmax",
        "use_grouped_topk": False,
        "custom_routing_function": None,
        "e_score_correction_bias": None,
        "routed_scaling_factor": 1.0,
    }
    for name, wanted in expected.items():
        # A router class of vLLM has the names of its own kind only; what it lacks it does not do.
        found = getattr(stock, name, wanted)
        if found is not wanted and found != wanted:
            return f"vLLM's {type(stock).__name__} has {name} {found}, the pack {wanted}"
    return None
