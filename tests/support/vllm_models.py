"""Tiny models that vLLM's kernels for CPUs take: families, shapes, and what real configs say beside stock ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from support.integers import compressed_config, quantised
from support.quantised import FP8, configure, fp8_checkpoint, mxfp4_checkpoint
from support.tiny import tiny_checkpoint

# vLLM's attention for CPUs knows heads of 32 numbers and more; its latent attention (MLA) only those of DeepSeek, 512
# and 64, and only bfloat16.
_WIDE, _FEW = {"head_dim": 32}, {"num_attention_heads": 2}
_MLA = {"q_lora_rank": 32, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


class Model(NamedTuple):
    """``overrides``: of the stock config; ``said``: added to config.json, as real ones have it and vLLM wants it;
    ``dtype``: of weights and arithmetic; ``fewer``: whether vLLM's own router gives numbers where a mask leaves fewer
    experts than top-k.
    """

    family: str
    overrides: Mapping[str, Any] = {}
    said: Mapping[str, Any] = {}
    dtype: str = "float32"
    fewer: bool = True


MODELS: Mapping[str, Model] = {
    "qwen3_moe, embeddings tied": Model("qwen3_moe", {**_WIDE, "tie_word_embeddings": True}),
    "qwen3_moe, not renormalised": Model("qwen3_moe", {**_WIDE, "norm_topk_prob": False}),
    "qwen2_moe": Model("qwen2_moe", _FEW),
    "mixtral": Model("mixtral", _WIDE),
    "olmoe": Model("olmoe", {**_FEW, "num_key_value_heads": 2}),
    "granitemoe": Model("granitemoe", _FEW),
    "glm4_moe, one group": Model("glm4_moe", _WIDE, fewer=False),
    "glm4_moe, two of four groups": Model(
        "glm4_moe", {**_WIDE, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5}, fewer=False
    ),
    "deepseek_v2, greedy": Model(
        "deepseek_v2", {**_MLA, "topk_method": "greedy", "n_group": 1, "topk_group": 1}, dtype="bfloat16", fewer=False
    ),
    "deepseek_v2, in groups": Model(
        "deepseek_v2",
        {**_MLA, "q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        dtype="bfloat16",
        fewer=False,
    ),
    "deepseek_v3": Model(
        "deepseek_v3", _MLA, {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}, dtype="bfloat16", fewer=False
    ),
    "kimi_k2": Model(
        "deepseek_v3",
        {**_MLA, "n_group": 1, "topk_group": 1, "called": "kimi_k2"},
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
        dtype="bfloat16",
        fewer=False,
    ),
    "ernie4_5_moe": Model("ernie4_5_moe", _FEW, fewer=False),
    "gpt_oss": Model("gpt_oss", {**_WIDE, "rope_parameters": _YARN, "swiglu_limit": 7.0}),
    "lfm2_moe": Model("lfm2_moe", _FEW, fewer=False),
    "lfm2_moe, no bias": Model("lfm2_moe", {**_FEW, "use_expert_bias": False, "norm_topk_prob": False}, fewer=False),
    "minimax_m2": Model(
        "minimax_m2", {**_WIDE, "rotary_dim": 16}, {"scoring_func": "sigmoid", "use_routing_bias": True}, fewer=False
    ),
    "phimoe": Model(
        "phimoe",
        {**_FEW, "router_jitter_noise": 0.01, "attention_bias": True},
        {"architectures": ["PhiMoEForCausalLM"]},
        fewer=False,
    ),
    "qwen3_next": Model(
        "qwen3_next", {**_WIDE, "linear_key_head_dim": 128, "linear_value_head_dim": 128}, dtype="bfloat16"
    ),
}

_PHI, _M2, _OSS = MODELS["phimoe"], MODELS["minimax_m2"], MODELS["gpt_oss"]
OTHERS: Mapping[str, tuple[Model, str]] = {
    "its class's name": (_PHI._replace(said={}), "PhimoeForCausalLM) and takes transformers' class"),
    "too few biases": (_PHI._replace(overrides={**_PHI.overrides, "attention_bias": False}), "the pack does not have"),
    "no routing bias": (_M2._replace(said={**_M2.said, "use_routing_bias": False}), "does not take all weights"),
    "no scoring function": (_M2._replace(said={"use_routing_bias": True}), "config.json does not say scoring_func"),
    "another limit": (_OSS._replace(overrides={**_OSS.overrides, "swiglu_limit": 2.0}), "swiglu_limit of 2.0"),
}
"""Models whose config.json vLLM reads as another one than the pack's, and of the refusal."""


def checkpoint_of(model: Model, folder: Path) -> Path:
    made = tiny_checkpoint(folder, model.family, getattr(torch, model.dtype), **model.overrides)
    configure(made, **model.said)
    return made


AMX = torch.cpu._is_amx_tile_supported()
# Whole blocks of 128 x 128.
_SQUARE: Mapping[str, Any] = {
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "intermediate_size": 128,
    "head_dim": 32,
    "num_key_value_heads": 4,
}


def _integers(config: Mapping[str, Any]) -> Callable[[Path], Path]:
    return lambda folder: quantised(folder, config, **_SQUARE).stored


def _fp8(folder: Path) -> Path:
    made = fp8_checkpoint(folder, "qwen3_moe", **_SQUARE)
    # Without this vLLM takes the routers for FP8, and loads them as such.
    gates = [f"model.layers.{block}.mlp.gate" for block in range(2)]
    configure(made, quantization_config={**FP8, "modules_to_not_convert": ["lm_head", *gates]})
    return made


def _deepseek_fp8(folder: Path) -> Path:
    v3, heads = MODELS["deepseek_v3"], {"q_lora_rank": 128, "qk_nope_head_dim": 64, "v_head_dim": 64}
    made = fp8_checkpoint(folder, v3.family, **{**_SQUARE, **v3.overrides, **heads})
    configure(made, **v3.said)
    return made


NUMBERS: Mapping[str, Callable[[Path], Path]] = {
    "bf16": lambda folder: tiny_checkpoint(folder, "qwen3_moe", torch.bfloat16, head_dim=32),
    "fp8": _fp8,
    "fp8, deepseek_v3": _deepseek_fp8,
    "mxfp4": lambda folder: mxfp4_checkpoint(
        folder, hidden_size=128, intermediate_size=128, head_dim=32, rope_parameters=_YARN, swiglu_limit=7.0
    ),
    "compressed-tensors, INT4": _integers(compressed_config("pack-quantized", bits=4, group_size=128)),
    "compressed-tensors, INT8": _integers(compressed_config("int-quantized", bits=8, group_size=None)),
    "gptq": _integers(
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 32,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
            "dynamic": {r"-:.*mlp\.gate$": {}},
        }
    ),
    "awq": _integers(
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 32,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": ["lm_head", "mlp.gate"],
        }
    ),
}
"""Checkpoints by the number format of their weights, computed with in bfloat16."""
