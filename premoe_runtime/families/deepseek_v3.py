"""DeepSeek-V3 and R1: sigmoid router in float32 with a correction bias, limited to the groups of the best pairs."""

from typing import Any

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec


def grouped_sigmoid(config: Any) -> RouterSpec:
    """The router of DeepSeek-V3 and of the families that took it over."""
    return RouterSpec(
        score="sigmoid",
        renormalise=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
        weights_dtype="float32",
        logits_dtype="float32",
        bias=True,
        groups=config.n_group,
        chosen_groups=config.topk_group,
        floor=1e-20,
        ranked=False,
    )


SPEC = FamilySpec(
    name="deepseek_v3",
    router=grouped_sigmoid,
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
    correction="e_score_correction_bias",
    ships_code=True,
    aliases=("kimi_k2",),
)
