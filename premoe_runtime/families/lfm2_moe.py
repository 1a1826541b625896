"""LFM2-MoE: sigmoid router in the model's dtype with a correction bias that its block holds; short convolutions."""

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.families.state import BlockState, Held
from premoe_runtime.formats.manifest import RouterSpec

SPEC = FamilySpec(
    name="lfm2_moe",
    router=lambda config: RouterSpec(
        score="sigmoid",
        renormalise=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
        scores_dtype="model",
        bias=config.use_expert_bias,
        offset=1e-6,
    ),
    fields=gated_experts(gate="w1", up="w3", down="w2"),
    sparse="feed_forward",
    handed_correction="expert_bias",
    float32=("expert_bias",),
    rotary="pos_emb",
    state=lambda config: BlockState(window=Held((config.hidden_size, config.conv_L_cache))),
)
