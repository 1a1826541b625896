"""The config.json of a compressed model: another number of experts, another width of each, and nothing else."""

from __future__ import annotations

import json

from premoe_runtime.families.config_keys import with_counts, with_width
from premoe_runtime.families.registry import parse_json_object, read_model
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import DTYPE_BYTES

ROW_BYTES = 16


def resized(config: bytes, model: MoeModel, *, experts: int, width: int, top_k: int) -> bytes:
    """The config with so many experts in the widest layer, of so many neurons, ``top_k`` a token.

    ``model``: what the config says now. Raises InvalidInput (CONFIG_INVALID) where the family names one of them by no
    key that is known, or where the key is that of dense layers, too (WIDTH_SHARED).
    """
    data = with_counts(parse_json_object(config, "config.json"), experts=experts, top_k=top_k)
    if width != width_of(model):
        data = with_width(data, width)
    written = json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"
    found = read_model(written)
    if (found.num_experts, found.top_k, width_of(found)) != (experts, top_k, width):
        raise InvalidInput(
            f"config.json of this {model.family} names its number of experts, its top-k or the width of experts by no "
            "key that is known; pack the checkpoint again with all three written out",
            reason="CONFIG_INVALID",
        )
    whole = model.cut_to(found.layer_experts[:1] * len(model.blocks))
    other = [name for name, one in found.skeleton.items() if whole.skeleton[name].shape != one.shape]
    if other:
        raise InvalidInput(
            f"{model.family} has one width for routed experts and for {other[0]}; only methods that keep the width "
            "can take it",
            reason="WIDTH_SHARED",
        )
    return written


def width_multiple(dtype: str) -> int:
    """What widths of experts stored in ``dtype`` are a multiple of: grouped kernels want rows of 16 bytes."""
    return ROW_BYTES // DTYPE_BYTES[dtype]


def width_of(model: MoeModel) -> int:
    """Neurons of a routed expert, I."""
    return model.shapes["down"][1]
