"""ERNIE-4.5: softmax in float32, chosen by probability + bias, renormalised over at least ``moe_norm_min``."""

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="ernie4_5_moe",
    router=lambda config: RouterSpec(
        score="softmax", renormalise=True, logits_dtype="float32", bias=True, floor=config.moe_norm_min
    ),
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
    correction="moe_statics.e_score_correction_bias",
    ships_code=True,
)
