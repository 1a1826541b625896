"""Qwen3-Next: softmax router, renormalised by ``norm_topk_prob``; three of four blocks are gated delta nets."""

from typing import Any

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.families.state import BlockState, Held
from premoe_runtime.formats.manifest import RouterSpec


def _state(config: Any) -> BlockState:
    heads, key, value = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
    channels = 2 * config.linear_num_key_heads * key + heads * value
    return BlockState(
        window=Held((channels, config.linear_conv_kernel_dim)), recurrent=Held((heads, key, value), float32=True)
    )


SPEC = FamilySpec(
    name="qwen3_next",
    router=lambda config: RouterSpec(score="softmax", renormalise=config.norm_topk_prob),
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
    state=_state,
)
