"""GLM-4.5, 4.6 and 4.7: the router of DeepSeek-V3, mostly with one group; attention keeps whole keys and values."""

from premoe_runtime.families.deepseek_v3 import grouped_sigmoid
from premoe_runtime.families.spec import FamilySpec, gated_experts

SPEC = FamilySpec(
    name="glm4_moe",
    router=grouped_sigmoid,
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
    correction="e_score_correction_bias",
)
