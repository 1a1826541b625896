"""Which models the plug-in runs: what the tests hold against stock vLLM. Everything else is refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest, NumberSpec, RouterSpec
from premoe_runtime.numbers.groups import ALL
from premoe_runtime.numbers.registry import numbers_of

FAMILIES = (
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5_moe",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "lfm2_moe",
    "minimax_m2",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
)
_TRANSFORMERS = "vLLM has no model of its own for it, and transformers' class chooses experts beside vLLM's router"
REFUSED: Mapping[str, str] = {
    "flex_olmo": _TRANSFORMERS,
    "hunyuan_v1_moe": _TRANSFORMERS,
    "jamba": "vLLM's build for CPUs lacks Mamba's kernel (selective_scan_fwd), so that it was held against nothing",
    "minimax": "vLLM took its model out in 0.23",
}
"""Family → why not."""
NUMBERS: Mapping[str, str] = {
    "awq": "4 bits in groups",
    "compressed-tensors": "packed symmetric INT4 in groups of another size than 32, and symmetric INT8 by channel",
    "fp8": "blocks of 128 x 128",
    "gptq": "4 bits in groups",
    "mxfp4": "groups of 32",
}
"""Number formats whose kernels were tried, and in which form."""
JITTER = 0.01
"""Of vLLM's sparsemixer, which reads no config."""
SWIGLU_LIMIT = 7.0
"""Of vLLM's kernels for GPT-OSS, which read no config."""


def check_covered(manifest: Manifest) -> None:
    """Raise InvalidInput (ENGINE_UNSUPPORTED) for a model that vLLM would not run as the pack means it."""
    fault = _fault(manifest)
    if fault:
        raise InvalidInput(
            f"the engine vllm does not run this {manifest.family} model: {fault}; use the engine hf",
            reason="ENGINE_UNSUPPORTED",
        )


def _fault(manifest: Manifest) -> str | None:
    if manifest.family not in FAMILIES:
        return REFUSED.get(manifest.family, f"only {', '.join(FAMILIES)} were held against stock vLLM")
    if len(set(manifest.layer_experts)) > 1:
        counts = slots_text(manifest.layer_experts)
        return f"its layers have different numbers of experts ({counts}), and vLLM knows one number for all"
    return router_fault(manifest.router) or (numbers_fault(manifest.numbers) if manifest.numbers else None)


def numbers_fault(spec: NumberSpec) -> str | None:
    """What of a number format was not held against a kernel of vLLM's; None: nothing."""
    columns = spec.block[1]
    match spec.method:
        case "fp8":
            held = spec.block == (128, 128)
        case "compressed-tensors" if spec.packed:
            held = spec.bits == 4 and spec.symmetric and not spec.by_importance and columns not in (ALL, 32)
        case "compressed-tensors":
            held = spec.bits == 8 and spec.symmetric and columns == ALL
        case "gptq" | "awq":
            held = spec.bits == 4 and columns != ALL
        case _:
            held = spec.method in NUMBERS
    if held:
        return None
    known = f"of {spec.method} only {NUMBERS[spec.method]}" if spec.method in NUMBERS else f"only {', '.join(NUMBERS)}"
    return f"its weights are stored as {numbers_of(spec).title}, and {known} were held against vLLM's kernels for CPUs"


def model_fault(module: str, config: object) -> str | None:
    """Why the model that vLLM built is not the pack's. ``module``: of its class; ``config``: config.json as read."""
    if "transformers" in module.split("."):
        names = ", ".join(getattr(config, "architectures", None) or ["none"])
        return (
            f"vLLM has no model of its own by the name that config.json's architectures give ({names}) and takes "
            "transformers' class; Phi-MoE's name is PhiMoEForCausalLM"
        )
    limit = getattr(config, "swiglu_limit", SWIGLU_LIMIT)
    if limit != SWIGLU_LIMIT:
        return f"config.json has a swiglu_limit of {limit}, and vLLM's kernels {SWIGLU_LIMIT:g} whatever it says"
    return None


def router_fault(spec: RouterSpec) -> str | None:
    """What of a router's arithmetic vLLM does otherwise; None: nothing."""
    if spec.score == "sparsemixer" and spec.jitter != JITTER:
        return f"its router has a jitter of {spec.jitter:g}, and vLLM's function {JITTER:g} whatever the config says"
    return None


def stock_router_fault(stock: object, manifest: Manifest) -> str | None:
    """Where vLLM's own router of a layer is another than the pack's; None: nowhere."""
    spec = manifest.router
    sigmoid, mixer, grouped = spec.score == "sigmoid", spec.score == "sparsemixer", is_grouped(stock)
    expected: Mapping[str, Collection[object]] = {
        "top_k": [manifest.top_k],
        "global_num_experts": [manifest.num_experts],
        "renormalize": [spec.renormalise or spec.score == "topk_softmax"],
        "scoring_func": ["sigmoid" if sigmoid else "softmax"],
        # Where the router does not scale, the layer scales what its experts give.
        "routed_scaling_factor": [1.0, spec.scale],
        **({"num_expert_group": [spec.groups], "topk_group": [spec.chosen_groups]} if grouped else {}),
    }
    for name, wanted in expected.items():
        # A router class of vLLM has the names of its own kind only; what it lacks it does not do.
        found = getattr(stock, name, next(iter(wanted)))
        if found not in wanted:
            return f"vLLM's {type(stock).__name__} has {name} {found}, the pack {next(iter(wanted))}"
    if spec.groups > 1 and not grouped:
        return f"vLLM's {type(stock).__name__} knows no groups, the pack has {spec.groups}"
    if (getattr(stock, "custom_routing_function", None) is not None) != mixer:
        return f"vLLM's {type(stock).__name__} and the pack differ in whether there is a function of the model's own"
    if (getattr(stock, "e_score_correction_bias", None) is not None) != spec.bias:
        return f"vLLM's {type(stock).__name__} and the pack differ in whether there is a correction bias"
    return None


def is_grouped(stock: object) -> bool:
    """Whether a router of vLLM is one of grouped top-k, which chooses by scores where others do by logits."""
    # The class for CPUs is one for all kinds, and says which it is.
    return bool(getattr(stock, "use_grouped_topk", hasattr(stock, "num_expert_group")))
