"""Every family that is supported, as tiny configurations: 2 MoE layers of 16 experts, top-4, hidden 64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One row of the suite of all families: a model type, and what its config says beside ``TINY``."""

    family: str
    overrides: Mapping[str, Any] = {}
    kept: int = 13
    """Experts a layer while it serves."""


_MLA = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 20,
    "num_key_value_heads": 4,
}
_DEEPSEEK = {
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "intermediate_size": 96,
}
TINY: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {**_DEEPSEEK, **_MLA, "routed_scaling_factor": 1.5},
    "deepseek_v3": {**_DEEPSEEK, **_MLA, "n_group": 4, "topk_group": 2},
    "ernie4_5_moe": {
        "num_hidden_layers": 3,
        "moe_layer_start_index": 1,
        "moe_num_experts": 16,
        "moe_k": 4,
        "num_experts_per_tok": None,
        "moe_intermediate_size": 32,
        "intermediate_size": 96,
        "tie_word_embeddings": False,
    },
    "flex_olmo": {"num_experts": 16, "intermediate_size": 32},
    "glm4_moe": {**_DEEPSEEK, "n_group": 1, "topk_group": 1, "use_qk_norm": True, "head_dim": 16},
    "gpt_oss": {
        "num_local_experts": 16,
        "intermediate_size": 32,
        "head_dim": 16,
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "swiglu_limit": 2.0,
    },
    "granitemoe": {
        "num_local_experts": 16,
        "intermediate_size": 32,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
    "hunyuan_v1_moe": {
        "num_experts": 16,
        "moe_topk": [4, 4],
        "num_experts_per_tok": None,
        "intermediate_size": 32,
        "head_dim": 16,
    },
    "jamba": {
        "num_hidden_layers": 4,  # Mamba, Mamba with experts, attention, Mamba with experts
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "num_experts": 16,
        "intermediate_size": 32,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "lfm2_moe": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
        "num_experts": 16,
        "moe_intermediate_size": 32,
        "intermediate_size": 96,
        "conv_L_cache": 3,
    },
    "minimax": {
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 16,
        "intermediate_size": 32,
        "head_dim": 16,
        "block_size": 8,
        "linear_attn_alpha_factor": 1.5,
        "mlp_beta_factor": 0.5,
    },
    "minimax_m2": {"num_local_experts": 16, "intermediate_size": 32, "head_dim": 16, "rotary_dim": 8},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 16,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "intermediate_size": 96,
        "head_dim": 16,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 12,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "phimoe": {
        "num_local_experts": 16,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "router_jitter_noise": 0.2,  # wide enough that some experts are nearly as good as the best
        "lm_head_bias": True,
    },
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.5] * 8,
    "short_mscale": 1.1,
    "long_mscale": 1.4,
    "original_max_position_embeddings": 14,  # one sequence of the suite outgrows it, another begins longer
}
ROWS: Mapping[str, Row] = {
    "deepseek_v2 greedy": Row("deepseek_v2"),
    "deepseek_v2 in groups": Row(
        "deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "q_lora_rank": None}
    ),
    "deepseek_v3": Row("deepseek_v3"),
    "deepseek_v3 plain": Row("deepseek_v3", {"norm_topk_prob": False, "n_group": 1, "topk_group": 1}),
    "ernie4_5_moe": Row("ernie4_5_moe"),
    "flex_olmo": Row("flex_olmo"),
    "glm4_moe": Row("glm4_moe"),
    "gpt_oss": Row("gpt_oss"),
    "granitemoe": Row("granitemoe"),
    "hunyuan_v1_moe": Row("hunyuan_v1_moe"),
    "kimi_k2": Row("deepseek_v3", {"n_group": 1, "topk_group": 1, "called": "kimi_k2"}),
    "jamba": Row("jamba"),
    "lfm2_moe": Row("lfm2_moe"),
    "lfm2_moe plain": Row(
        "lfm2_moe",
        {
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "layer_types": ["full_attention", "conv", "full_attention"],
        },
    ),
    "minimax": Row("minimax"),
    "minimax_m2": Row("minimax_m2"),
    "mixtral": Row("mixtral"),
    "olmoe": Row("olmoe"),
    "phimoe": Row("phimoe"),
    "phimoe longrope": Row("phimoe", {"rope_parameters": _LONGROPE}, kept=10),
    "qwen2_moe": Row("qwen2_moe"),
    "qwen3_moe": Row("qwen3_moe"),
    "qwen3_next": Row("qwen3_next"),
    "qwen3_next attention first": Row(
        "qwen3_next", {"norm_topk_prob": False, "layer_types": ["full_attention", "linear_attention"]}
    ),
    "qwen3_moe plain": Row("qwen3_moe", {"norm_topk_prob": False}),
}
