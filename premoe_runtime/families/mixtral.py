"""Mixtral: softmax router, always renormalised, float32 weights; w1, w3 and w2 on disk."""

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="mixtral",
    router=lambda config: RouterSpec(score="softmax", renormalise=True, weights_dtype="float32"),
    fields=gated_experts(gate="w1", up="w3", down="w2"),
)
