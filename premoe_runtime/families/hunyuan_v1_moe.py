"""HunYuan-V1-MoE: softmax router in float32, always renormalised, a linear layer inside; a shared expert."""

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="hunyuan_v1_moe",
    router=lambda config: RouterSpec(
        score="softmax", renormalise=True, weights_dtype="float32", logits_dtype="float32"
    ),
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
    router_weight="wg.weight",
    ships_code=True,
)
