"""Which models the plug-in runs: what the tests hold against stock vLLM. Everything else is refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest, RouterSpec

FAMILIES = ("glm4_moe", "granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
WITHOUT_MODEL = ("flex_olmo", "hunyuan_v1_moe")
"""vLLM runs transformers' classes for these, and its experts not at all."""


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
    if manifest.family in WITHOUT_MODEL:
        return "vLLM has no model of its own for it"
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
    if spec.score == "sigmoid":
        return None if spec.bias and spec.group_score == "top2" else "its router's sigmoid has no correction bias"
    if spec.score not in ("softmax", "topk_softmax"):
        return f"its router scores by {spec.score}"
    if spec.bias:
        return "its router adds a correction bias to a softmax"
    if spec.groups > 1:
        return "its router chooses within groups by a softmax"
    return None if spec.scale == 1.0 else "its router scales the weights of a softmax"


def stock_router_fault(stock: object, manifest: Manifest) -> str | None:
    """Where vLLM's own router of a layer is another than the pack's; None: nowhere."""
    spec = manifest.router
    grouped = spec.score == "sigmoid"
    expected: Mapping[str, Collection[object]] = {
        "top_k": [manifest.top_k],
        "global_num_experts": [manifest.num_experts],
        "renormalize": [spec.renormalise or spec.score == "topk_softmax"],
        "scoring_func": ["sigmoid" if grouped else "softmax"],
        "use_grouped_topk": [grouped],
        "custom_routing_function": [None],
        # Where the router does not scale, the layer scales what its experts give.
        "routed_scaling_factor": [1.0, spec.scale],
        **({"num_expert_group": [spec.groups], "topk_group": [spec.chosen_groups]} if grouped else {}),
    }
    for name, wanted in expected.items():
        # A router class of vLLM has the names of its own kind only; what it lacks it does not do.
        found = getattr(stock, name, next(iter(wanted)))
        if found not in wanted:
            return f"vLLM's {type(stock).__name__} has {name} {found}, the pack {next(iter(wanted))}"
    if (getattr(stock, "e_score_correction_bias", None) is not None) != spec.bias:
        return f"vLLM's {type(stock).__name__} and the pack differ in whether there is a correction bias"
    return None
