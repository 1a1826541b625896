"""GPT-OSS: logits with a bias, softmax over the chosen; experts with biases, fused; sinks and windows."""

from premoe_runtime.families.spec import ExpertField, FamilySpec
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="gpt_oss",
    router=lambda config: RouterSpec(score="topk_softmax", renormalise=False),
    fields=(
        ExpertField("gate_up", fused="gate_up_proj", parts=("gate_proj", "up_proj"), transposed=True, interleaved=True),
        ExpertField("down", fused="down_proj", parts=("down_proj",), transposed=True),
        ExpertField(
            "gate_up_bias", fused="gate_up_proj_bias", parts=("gate_proj_bias", "up_proj_bias"), interleaved=True
        ),
        ExpertField("down_bias", fused="down_proj_bias", parts=("down_proj_bias",)),
    ),
    router_module="router",
    router_bias="bias",
    always_fused=True,
)
