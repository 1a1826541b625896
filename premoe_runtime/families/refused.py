"""Families that people have and that cannot be packed, each with the reason and what it would take."""

from __future__ import annotations

from collections.abc import Mapping

_STATE = "its blocks keep recurrent or convolutional state, and the engine keeps keys and values only"
_CODE = "transformers has no class for it, and code from a checkpoint is never run"
_ENCODER = "encoder-decoder models are not served: the engine continues one sequence of tokens"

REFUSED: Mapping[str, str] = {
    "deepseek_v4": "its first layers route by a table over token ids, which no pattern can restrict yet",
    "jamba": _STATE,
    "kimi_k2": "it is DeepSeek-V3 with other numbers: in config.json set model_type to deepseek_v3 and remove auto_map",
    "lfm2_moe": _STATE,
    "llama4": "its routers weigh what goes into an expert, not what comes out, which needs a kernel of its own",
    "llama4_text": "its routers weigh what goes into an expert, not what comes out, which needs a kernel of its own",
    "longcat_flash": "its zero experts have no weights, so no blobs, and a block has two attentions",
    "minimax": _STATE,
    "minimax_m2": "its correction bias lies outside of its router, where no restricted router finds it yet",
    "nemotron_h": _STATE,
    "nllb-moe": _ENCODER,
    "pangu_ultra_moe": _CODE,
    "qwen3_next": _STATE,
    "switch_transformers": _ENCODER,
}
"""``model_type`` → why not."""
