"""DeepSeek-V2: softmax router in float32, scaled and never renormalised, greedy or limited to the best groups."""

from typing import Any

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec


def _router(config: Any) -> RouterSpec:
    if config.topk_method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"topk_method {config.topk_method!r} is neither greedy nor group_limited_greedy")
    limited = config.topk_method == "group_limited_greedy"
    return RouterSpec(
        score="softmax",
        renormalise=False,  # the stock class ignores norm_topk_prob
        scale=config.routed_scaling_factor,
        weights_dtype="float32",
        logits_dtype="float32",
        groups=config.n_group if limited else 1,
        chosen_groups=config.topk_group if limited else 1,
        group_score="max" if limited else "top2",
        ranked=False,
    )


SPEC = FamilySpec(
    name="deepseek_v2",
    router=_router,
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
    ships_code=True,
)
