"""Granite-MoE: softmax over the chosen logits; the router returns in another order; experts fused on disk too."""

from premoe_runtime.families.spec import ExpertField, FamilySpec
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="granitemoe",
    router=lambda config: RouterSpec(score="topk_softmax", renormalise=False),
    fields=(
        ExpertField("gate_up", fused="gate_up_proj", parts=("gate_up_proj",)),
        ExpertField("down", fused="down_proj", parts=("down_proj",)),
    ),
    sparse="block_sparse_moe",
    router_module="router",
    router_returns=("ids", "weights", "logits"),
    embedding_factor="embedding_multiplier",
    always_fused=True,
    reshapes_output="multiplies what its experts give before it adds it",
)
