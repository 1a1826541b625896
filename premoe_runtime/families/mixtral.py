"""Mixtral: softmax router, always renormalised, float32 weights; ``block_sparse_moe`` and w1/w2/w3 on disk."""

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

MODEL_TYPE = "mixtral"


class MixtralFields(BaseConfig):
    """Mixtral has one feed-forward size: ``intermediate_size`` is an expert's."""

    num_experts_per_tok: int = Field(default=2, ge=1)


def read(data: Mapping[str, object], where: str) -> MoeModel:
    """The checkpoint's content by its config. Raises InvalidInput."""
    config = parse_config(MixtralFields, data, where).model_copy(update={"attention_bias": False})
    hidden, inner = config.hidden_size, config.intermediate_size
    experts = expert_count(config, 8, where)
    blocks = tuple(range(config.num_hidden_layers))
    skeleton = outer_tensors(config)
    for block in blocks:
        skeleton |= attention_tensors(config, block, norm_sizes=None)
        skeleton[f"model.layers.{block}.block_sparse_moe.gate.weight"] = TensorSpec((experts, hidden))
    return MoeModel(
        family=MODEL_TYPE,
        router=RouterSpec(score="softmax", renormalise=True, weights_dtype="float32"),
        top_k=check_top_k(config.num_experts_per_tok, experts, where),
        num_experts=experts,
        hidden_size=hidden,
        intermediate_size=inner,
        blocks=blocks,
        experts_prefix=tuple(f"model.layers.{block}.block_sparse_moe.experts" for block in blocks),
        expert_tensors=gated_expert(hidden, inner, gate="w1.weight", up="w3.weight", down="w2.weight"),
        skeleton=skeleton,
    )
