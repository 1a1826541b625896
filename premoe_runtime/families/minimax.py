"""MiniMax-Text-01: Mixtral's router; most blocks have lightning attention, which keeps a sum of keys and values."""

from typing import Any

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.families.state import BlockState, Held
from premoe_runtime.formats.manifest import RouterSpec


def _state(config: Any) -> BlockState:
    heads = config.num_attention_heads
    size = config.head_dim or config.hidden_size // heads
    return BlockState(recurrent=Held((heads, size, size)))


SPEC = FamilySpec(
    name="minimax",
    router=lambda config: RouterSpec(score="softmax", renormalise=True, weights_dtype="float32"),
    fields=gated_experts(gate="w1", up="w3", down="w2"),
    state=_state,
    reshapes_output="multiplies what its experts give before it adds it",
)
