"""The byte counts of a model that its config alone tells. Imports torch, for the stock classes say which tensors exist.

A model that is not served, for its code is not in transformers or nobody here has heard of it, is counted as the family
whose blocks have its fields: DeepSeek-V3 with latents, GLM-4-MoE with grouped attention. What says that it is another
kind is refused. Such a model is sized, not servable: ``Shape.unserved`` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from warnings import catch_warnings, simplefilter

from premoe_runtime.families import stock
from premoe_runtime.families.refused import REFUSED
from premoe_runtime.families.registry import FAMILIES, as_stock, parse_json_object
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.families.state import stateful_blocks
from premoe_runtime.families.stored import as_configured, skeleton_bytes
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import DTYPE_BYTES
from premoe_runtime.formats.safetensors import shown
from premoe_runtime.numbers.registry import read_numbers
from premoe_runtime.offline.sizing.fields import SizedConfig, UsualConfig, read_fields
from premoe_runtime.offline.sizing.numbers import DEFAULT_DTYPE, name_of, with_dtype
from premoe_runtime.offline.sizing.shape import Shape, activation_bytes
from premoe_runtime.packs.layout import blob_layout

_OTHER_KINDS = (
    "mamba", "ssm", "conv", "linear_", "lightning", "attn_layer", "layer_types", "hybrid", "zero_expert", "block_types",
    "interleave_moe", "expert_layer", "encoder", "vision", "audio", "text_config", "hash", "kv_layers", "index_",
)  # fmt: skip
"""Beginnings of fields that only a model has whose blocks are not attention and one MLP, all alike."""
_STAND_INS = ("pangu_ultra_moe",)
"""Of those that are refused: whose layers are another family's all the same."""
_EXPERT_FIELDS = ("n_routed_experts", "num_routed_experts", "num_experts", "num_local_experts")


def shape_of_config(config: bytes, where: str, dtype: str | None = None) -> Shape:
    """Byte counts of a checkpoint; ``dtype``: a number format in place of the one that the config states.

    Raises InvalidInput, CorruptData: no config of a model with experts, one that only its own code explains, or a
    number format that it cannot have.
    """
    data = as_stock(parse_json_object(config, where))
    unserved = ""
    if data.get("model_type") not in FAMILIES:
        data, unserved = _stand_in(data, where)
    if dtype is not None:
        data = with_dtype(data, dtype)
    read_numbers(data.get("quantization_config"), where)  # what is none would be told by transformers, less clearly
    return replace(_counted(data, where), unserved=unserved)


def _counted(data: Mapping[str, object], where: str) -> Shape:
    spec = FAMILIES[str(data["model_type"])]
    # The class that is built is transformers' own, whatever code the checkpoint brings.
    config = stock.stock_config(spec, {key: value for key, value in data.items() if key != "auto_map"}, where)
    with catch_warnings():
        simplefilter("ignore", UserWarning)  # torch about shared experts of width 0
        model = stock.build(config, where)
    facts = plain = stock.describe(spec, model, where)
    if facts.numbers is not None:
        del config.quantization_config
        plain = stock.describe(spec, model, where)
    dtype = facts.stated_dtype or DEFAULT_DTYPE
    item, reads = DTYPE_BYTES[dtype], stock.probed(model, plain)
    fields = read_fields(SizedConfig, config.to_dict(), where)
    stateful = stateful_blocks(config)
    return Shape(
        top_k=facts.top_k,
        layer_experts=facts.layer_experts,
        blob_bytes=blob_layout(facts, dtype).blob_bytes,
        slot_blob_bytes=blob_layout(plain, dtype).blob_bytes,
        stored_skeleton_bytes=skeleton_bytes(as_configured(facts), dtype),
        skeleton_bytes=skeleton_bytes(plain, dtype),
        kv_token_bytes=(fields.num_hidden_layers - len(stateful)) * fields.cached_size * item,
        activation_token_bytes=activation_bytes(fields, facts.top_k, _widest(plain), item),
        logits_row_bytes=2 * 4 * fields.vocab_size,
        max_context=facts.context,
        numbers=name_of(dtype) if facts.numbers is None else f"{facts.numbers.title}, the rest {name_of(dtype)}",
        held=name_of(dtype),
        expanded_token_bytes=fields.expanded_size * item,
        state_bytes=len(stateful) * spec.state(config).num_bytes(item) if spec.state is not None else 0,
        probed_bytes=item
        * sum(prod(one.shape) for one in plain.skeleton.values() if not one.optional and reads(one.memory)),
    )


def _widest(model: MoeModel) -> int:
    return max(shape[0] for shape in model.shapes.values())


def _stand_in(data: Mapping[str, object], where: str) -> tuple[dict[str, object], str]:
    """The config of a served family with the same tensors, and why this one is not served."""
    model_type = shown(str(data.get("model_type")))
    why = REFUSED.get(model_type, f"model type {model_type!r} is not one that can be packed")
    if not any(data.get(name) for name in _EXPERT_FIELDS):
        raise InvalidInput(
            f"{where}: a {model_type} config without experts ({', '.join(_EXPERT_FIELDS)}): there is nothing to prune",
            reason="CONFIG_INVALID",
        )
    odd = [name for name, value in data.items() if value and name.startswith(_OTHER_KINDS)]
    odd += [name for name in ("moe_layer_freq", "decoder_sparse_step") if data.get(name, 1) != 1]
    if odd or (model_type in REFUSED and model_type not in _STAND_INS):
        said = f" ({', '.join(sorted(odd)[:3])}: its blocks are not all attention and experts)" if odd else ""
        raise InvalidInput(
            f"{where}: a {model_type} cannot be sized from its fields{said}, nor served: {shown(why)}",
            reason="UNKNOWN_FAMILY",
        )
    fields = read_fields(UsualConfig, data, where)
    also = ("quantization_config", "dtype", "torch_dtype")
    given = {**fields.model_dump(exclude_none=True), **{name: data[name] for name in also if name in data}}
    family = "deepseek_v3" if fields.kv_lora_rank else "glm4_moe"
    ungrouped = {"n_group": 1, "topk_group": 1, "q_lora_rank": fields.q_lora_rank}
    return {**given, **ungrouped, "model_type": family}, shown(why)
