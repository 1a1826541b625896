"""Which tensors a model has and how large they are, from its config alone.

A family that is served is asked through its stock class. Another one, whose code is not in transformers or that no
engine runs, is worked out of the fields of its config, where they are those of a decoder of the usual kind; whatever
says that it is another kind is refused. Such a model is sized, not servable: ``Outline.unserved`` says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from premoe_runtime.families.refused import REFUSED
from premoe_runtime.families.registry import FAMILIES, parse_json_object
from premoe_runtime.families.spec import FamilySpec
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.safetensors import shown
from premoe_runtime.offline.sizing.fields import SizedConfig, SparseConfig, read_fields

_OTHER_KINDS = (
    "mamba", "ssm", "conv", "linear_", "lightning", "attn_layer", "layer_types", "hybrid", "zero_expert", "block_types",
    "interleave_moe", "expert_layer", "encoder", "vision", "audio", "text_config", "hash", "kv_layers",
)  # fmt: skip
"""Beginnings of fields that only a model has whose blocks are not attention and one MLP, all alike."""
_USUAL_KINDS = ("kimi_k2", "pangu_ultra_moe")
"""Of those that are refused: whose layers are DeepSeek-V3's all the same."""
_EXPERT_FIELDS = ("n_routed_experts", "num_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class Outlined:
    """A tensor beside the experts: whether number formats pack it, and whether a probing process reads it too."""

    name: str
    shape: tuple[int, ...]
    linear: bool = False
    probed: bool = False


@dataclass(frozen=True, slots=True)
class Outline:
    """``experts``: one expert's shape of every field, under the name of a tensor that it comes from."""

    family: str
    fields: SizedConfig
    top_k: int
    layer_experts: tuple[int, ...]
    experts: Mapping[str, tuple[int, ...]]
    skeleton: tuple[Outlined, ...]
    data: Mapping[str, object]
    """The config itself."""
    unserved: str = ""
    """Why no engine runs it; empty for a family that is served."""


def outline_of(config: bytes, where: str) -> Outline:
    """Raises InvalidInput, CorruptData: no config of a model with experts, or one that only its own code explains."""
    data = parse_json_object(config, where)
    model_type = data.get("model_type")
    spec = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if spec is not None:
        return _stock(spec, data, where)
    return _usual(str(model_type), data, where)


def _stock(spec: FamilySpec, data: Mapping[str, object], where: str) -> Outline:
    from premoe_runtime.families import stock  # torch: seconds, for whoever has a config and no pack

    # The class that is built is transformers' own, whatever code the checkpoint brings.
    plain = {name: value for name, value in data.items() if name not in ("auto_map", "quantization_config")}
    config = stock.stock_config(spec, plain, where)
    model = stock.build(config, where)
    facts = stock.describe(spec, model, where)
    ends = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if module in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    reads = stock.probed(model, facts)
    skeleton = tuple(
        Outlined(
            name,
            tensor.shape,
            linear=len(tensor.shape) == 2 and tensor.memory not in ends and name not in facts.routers,
            probed=reads(tensor.memory),
        )
        for name, tensor in facts.skeleton.items()
        if not tensor.optional
    )
    expert = facts.experts_prefix[0]
    return Outline(
        family=spec.name,
        fields=read_fields(SizedConfig, config.to_dict(), where),
        top_k=facts.top_k,
        layer_experts=facts.layer_experts,
        experts={f"{expert}.0.{field.parts[0]}": facts.shapes[field.name] for field in spec.fields},
        skeleton=skeleton,
        data=data,
    )


def _usual(model_type: str, data: Mapping[str, object], where: str) -> Outline:
    why = REFUSED.get(model_type, f"model type {shown(model_type)!r} is not one that can be packed")
    if not any(data.get(name) for name in _EXPERT_FIELDS):
        raise InvalidInput(
            f"{where}: a {shown(model_type)} config without experts ({', '.join(_EXPERT_FIELDS[:3])}, …): "
            "there is nothing to prune",
            reason="CONFIG_INVALID",
        )
    odd = [name for name, value in data.items() if value and name.startswith(_OTHER_KINDS)]
    odd += [name for name in ("moe_layer_freq", "decoder_sparse_step") if data.get(name, 1) != 1]
    if odd or (model_type in REFUSED and model_type not in _USUAL_KINDS):
        said = f" ({', '.join(sorted(odd)[:3])}: its blocks are not all attention and experts)" if odd else ""
        raise InvalidInput(
            f"{where}: a {shown(model_type)} cannot be sized from its fields{said}, nor served: {why}",
            reason="UNKNOWN_FAMILY",
        )
    fields = read_fields(SparseConfig, data, where)
    if fields.dense_layers >= fields.num_hidden_layers or fields.top_k > fields.experts:
        raise InvalidInput(
            f"{where}: {fields.dense_layers} dense of {fields.num_hidden_layers} layers, {fields.top_k} of "
            f"{fields.experts} experts a token: no model is like that",
            reason="CONFIG_INVALID",
        )
    inner = fields.moe_intermediate_size
    return Outline(
        family=model_type,
        fields=fields,
        top_k=fields.top_k,
        layer_experts=(fields.experts,) * (fields.num_hidden_layers - fields.dense_layers),
        experts={
            "mlp.experts.0.gate_proj.weight": (2 * inner, fields.hidden_size),
            "mlp.experts.0.down_proj.weight": (fields.hidden_size, inner),
        },
        skeleton=tuple(_usual_skeleton(fields)),
        data=data,
        unserved=why,
    )


def _usual_skeleton(fields: SparseConfig) -> Iterator[Outlined]:
    hidden = fields.hidden_size
    yield Outlined("embed_tokens.weight", (fields.vocab_size, hidden))
    if not fields.tie_word_embeddings:
        yield Outlined("lm_head.weight", (fields.vocab_size, hidden))
    yield Outlined("norm.weight", (hidden,))
    for block in range(fields.num_hidden_layers):
        sparse = block >= fields.dense_layers
        width = fields.shared_experts * fields.moe_intermediate_size if sparse else fields.intermediate_size
        weights = {**_attention(fields), "mlp.gate_up": (2 * width, hidden), "mlp.down": (hidden, width)}
        for name, shape in weights.items():
            if all(shape):
                yield Outlined(f"layers.{block}.{name}.weight", shape, linear=True)
        for norm in range(4 if fields.sandwich_norm else 2):
            yield Outlined(f"layers.{block}.norm{norm}.weight", (hidden,))
        if sparse:
            yield Outlined(f"layers.{block}.mlp.gate.weight", (fields.experts, hidden))


def _attention(fields: SizedConfig) -> dict[str, tuple[int, int]]:
    hidden, heads = fields.hidden_size, fields.num_attention_heads
    if not fields.kv_lora_rank:
        return {
            "self_attn.qkv": (fields.query_size + 2 * fields.key_value_size, hidden),
            "self_attn.o": (hidden, fields.query_size),
        }
    rank = fields.q_lora_rank
    query = {"self_attn.q_b": (fields.query_size, rank), "self_attn.q_a": (rank, hidden)} if rank else None
    return {
        **(query or {"self_attn.q": (fields.query_size, hidden)}),
        "self_attn.kv_a": (fields.kv_lora_rank + fields.qk_rope_head_dim, hidden),
        "self_attn.kv_b": (heads * (fields.qk_nope_head_dim + fields.v_head_dim), fields.kv_lora_rank),
        "self_attn.o": (hidden, heads * fields.v_head_dim),
    }
