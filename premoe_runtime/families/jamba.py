"""Jamba: softmax router, a linear layer whose block chooses; most blocks are Mamba, every second one is dense."""

from typing import Any

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.families.state import BlockState, Held
from premoe_runtime.formats.manifest import RouterSpec


def _state(config: Any) -> BlockState:
    channels = config.mamba_expand * config.hidden_size
    return BlockState(
        window=Held((channels, config.mamba_d_conv)),
        recurrent=Held((channels, config.mamba_d_state), float32=True),
        whole_prompts=True,  # its scan of several tokens begins at zero, whatever came before
    )


SPEC = FamilySpec(
    name="jamba",
    router=lambda config: RouterSpec(score="softmax", renormalise=False),
    fields=gated_experts(gate="gate_proj", up="up_proj", down="down_proj"),
    sparse="feed_forward",
    router_module="router",
    router_returns=("ids", "weights"),
    chooser="route_tokens_to_experts",
    ships_code=True,
    rotary="",
    state=_state,
)
