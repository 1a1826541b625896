"""Qwen3-MoE: softmax router, renormalised by ``norm_topk_prob``; some blocks may be dense."""

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="qwen3_moe",
    router=lambda config: RouterSpec(score="softmax", renormalise=config.norm_topk_prob),
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
)
