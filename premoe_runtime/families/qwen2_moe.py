"""Qwen2-MoE: softmax router, not renormalised by default; a shared expert with a gate of its own is skeleton."""

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="qwen2_moe",
    router=lambda config: RouterSpec(score="softmax", renormalise=config.norm_topk_prob),
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
)
