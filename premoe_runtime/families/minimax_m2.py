"""MiniMax-M2: sigmoid router with a correction bias that its block holds, renormalised, float32 weights."""

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="minimax_m2",
    router=lambda config: RouterSpec(
        score="sigmoid", renormalise=True, weights_dtype="float32", bias=True, ranked=False
    ),
    fields=gated_experts(gate="w1", up="w3", down="w2"),
    handed_correction="e_score_correction_bias",
    ships_code=True,
)
