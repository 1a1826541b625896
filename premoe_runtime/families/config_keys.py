"""What a ``config.json`` calls its numbers of experts, and the same config with others. No torch.

transformers writes Qwen3-MoE's count as ``num_local_experts`` and ignores ``num_experts`` beside it, DeepSeek and GLM
say ``n_routed_experts``, ERNIE ``moe_num_experts`` and ``moe_k``, HunYuan ``moe_topk``, sometimes a number a layer,
OpenAI's GPT-OSS ``experts_per_token`` beside ``num_experts_per_tok``: every key that is there changes, none is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k")
WIDTH = ("moe_intermediate_size", "intermediate_size")
PREDICTED_BLOCKS = "num_nextn_predict_layers"
"""Blocks of multi-token prediction, which no pack holds."""


def with_counts(data: Mapping[str, object], *, experts: int, top_k: int) -> dict[str, object]:
    """The config of a model with so many experts a layer, so many of them a token, and no predicted blocks.

    What asks for code of the checkpoint (``auto_map``) goes: no pack holds that.
    """
    changed = {key: value for key, value in data.items() if key != "auto_map"}
    for keys, number in ((EXPERTS, experts), (TOP_K, top_k), ((PREDICTED_BLOCKS,), 0)):
        for key in keys:
            if key in changed:
                changed[key] = _replaced(changed[key], number)
    return changed


def _replaced(value: object, number: int) -> object:
    """``number`` in the form that ``value`` has; what is no number (null) stays."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [number] * len(value)
    return number if isinstance(value, int) else value


def with_width(data: Mapping[str, object], width: int) -> dict[str, object]:
    """The config of a model whose routed experts have so many neurons each.

    ``moe_intermediate_size`` where it is there; else ``intermediate_size``, which may be that of dense layers, too:
    whoever reads the result sees it.
    """
    key = next((key for key in WIDTH if key in data), None)
    return dict(data) if key is None else {**data, key: _replaced(data[key], width)}
