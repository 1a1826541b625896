"""Families that people have and that cannot be packed, each with the reason and what it would take."""

from __future__ import annotations

from collections.abc import Mapping

_CODE = "transformers has no class for it, and code from a checkpoint is never run"
_ENCODER = "encoder-decoder models are not served: the engine continues one sequence of tokens"

REFUSED: Mapping[str, str] = {
    "deepseek_v4": "its first layers route by a table over token ids, which no pattern can restrict yet",
    "llama4": "its routers weigh what goes into an expert, not what comes out, which needs a kernel of its own",
    "llama4_text": "its routers weigh what goes into an expert, not what comes out, which needs a kernel of its own",
    "longcat_flash": "its zero experts have no weights, so no blobs, and a block has two attentions",
    "monet": f"its experts are pairs of halves that all pairs share, found by product keys: no blob each; and {_CODE}",
    "nemotron_h": "its experts have no gate, which needs a kernel of its own, and a block mixes tokens or has experts",
    "nllb-moe": _ENCODER,
    "pangu_ultra_moe": _CODE,
    "switch_transformers": _ENCODER,
}
"""``model_type`` → why not."""
