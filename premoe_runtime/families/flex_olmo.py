"""FlexOlmo: OLMoE's router, softmax and not renormalised unless ``norm_topk_prob`` says so."""

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="flex_olmo",
    router=lambda config: RouterSpec(score="softmax", renormalise=config.norm_topk_prob),
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
    reshapes_output="normalises what its experts give before it adds it",
)
