"""Phi-mini-MoE, Phi-3.5-MoE: sparsemixer, two experts, each weighed among those nearly as good."""

from typing import Any

from premoe_runtime.families.spec import FamilySpec, gated_experts
from premoe_runtime.formats.manifest import RouterSpec


def _router(config: Any) -> RouterSpec:
    if config.num_experts_per_tok != 2:
        raise ValueError(f"num_experts_per_tok {config.num_experts_per_tok}, but sparsemixer chooses 2")
    return RouterSpec(score="sparsemixer", renormalise=False, jitter=config.router_jitter_noise)


SPEC = FamilySpec(
    name="phimoe",
    router=_router,
    fields=gated_experts(gate="w1", up="w3", down="w2"),
    router_module="router",
    ships_code=True,
    longrope=True,
)
