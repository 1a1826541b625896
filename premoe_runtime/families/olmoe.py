"""OLMoE: softmax router, not renormalised unless ``norm_topk_prob``; query and key norms over the whole projection."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from premoe_runtime.families.base import (
    BaseConfig,
    MoeModel,
    TensorSpec,
    attention_tensors,
    check_top_k,
    expert_count,
    gated_expert,
    outer_tensors,
    parse_config,
)
from premoe_runtime.formats.manifest import RouterSpec

MODEL_TYPE = "olmoe"


class OlmoeFields(BaseConfig):
    """OLMoE has one feed-forward size: ``intermediate_size`` is an expert's."""

    num_experts_per_tok: int = Field(default=8, ge=1)
    norm_topk_prob: bool = False


def read(data: Mapping[str, object], where: str) -> MoeModel:
    """The checkpoint's content by its config. Raises InvalidInput."""
    config = parse_config(OlmoeFields, data, where)
    hidden, inner = config.hidden_size, config.intermediate_size
    experts = expert_count(config, 64, where)
    blocks = tuple(range(config.num_hidden_layers))
    key_norm = (
        config.hidden_size // config.num_attention_heads * (config.num_key_value_heads or config.num_attention_heads)
    )
    skeleton = outer_tensors(config)
    for block in blocks:
        skeleton |= attention_tensors(config, block, norm_sizes=(hidden, key_norm))
        skeleton[f"model.layers.{block}.mlp.gate.weight"] = TensorSpec((experts, hidden))
    return MoeModel(
        family=MODEL_TYPE,
        router=RouterSpec(score="softmax", renormalise=config.norm_topk_prob),
        top_k=check_top_k(config.num_experts_per_tok, experts, where),
        num_experts=experts,
        hidden_size=hidden,
        intermediate_size=inner,
        blocks=blocks,
        experts_prefix=tuple(f"model.layers.{block}.mlp.experts" for block in blocks),
        expert_tensors=gated_expert(
            hidden, inner, gate="gate_proj.weight", up="up_proj.weight", down="down_proj.weight"
        ),
        skeleton=skeleton,
    )
