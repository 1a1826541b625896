"""Qwen3-MoE: softmax router, renormalised by ``norm_topk_prob``; dense blocks where the config says so."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from premoe_runtime.families.base import (
    MAX_DIMENSION,
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
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import RouterSpec

MODEL_TYPE = "qwen3_moe"


class Qwen3MoeFields(BaseConfig):
    """Defaults are those of the stock configuration class."""

    moe_intermediate_size: int = Field(default=768, ge=1, le=MAX_DIMENSION)
    num_experts_per_tok: int = Field(default=8, ge=1)
    norm_topk_prob: bool = False
    decoder_sparse_step: int = Field(default=1, ge=1)
    mlp_only_layers: tuple[int, ...] | None = None


def read(data: Mapping[str, object], where: str) -> MoeModel:
    """The checkpoint's content by its config. Raises InvalidInput."""
    config = parse_config(Qwen3MoeFields, data, where)
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    experts = expert_count(config, 128, where)
    blocks = _moe_blocks(config)
    if not blocks:
        raise InvalidInput(f"{where}: no block is a MoE block; there is nothing to prune", reason="CONFIG_INVALID")
    skeleton = outer_tensors(config)
    for block in range(config.num_hidden_layers):
        skeleton |= attention_tensors(config, block, norm_sizes=(config.head_size, config.head_size))
        prefix = f"model.layers.{block}.mlp"
        if block in blocks:
            skeleton[f"{prefix}.gate.weight"] = TensorSpec((experts, hidden))
            continue
        skeleton[f"{prefix}.gate_proj.weight"] = TensorSpec((config.intermediate_size, hidden))
        skeleton[f"{prefix}.up_proj.weight"] = TensorSpec((config.intermediate_size, hidden))
        skeleton[f"{prefix}.down_proj.weight"] = TensorSpec((hidden, config.intermediate_size))
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


def _moe_blocks(config: Qwen3MoeFields) -> tuple[int, ...]:
    """As the stock decoder layer decides: not listed as dense, and every ``decoder_sparse_step``-th block."""
    dense = frozenset(config.mlp_only_layers or ())
    return tuple(
        block
        for block in range(config.num_hidden_layers)
        if block not in dense and (block + 1) % config.decoder_sparse_step == 0
    )
