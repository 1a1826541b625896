"""What a family tells about its checkpoints: which tensors exist, with which shapes, and how its router works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import RouterSpec

MAX_DIMENSION = 1 << 24


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Expected shape of a skeleton tensor; an ``optional`` one may be absent."""

    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """One routed-expert tensor on disk and its rows inside a blob field.

    ``suffix`` follows ``<experts prefix>.<expert>.``; the tensor [rows, columns] lies in ``field`` from row ``row`` on.
    """

    suffix: str
    field: str
    row: int
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class MoeModel:
    """A checkpoint's expected content, worked out from its config alone.

    ``experts_prefix[i]`` is the name before ``.<expert>.<suffix>`` of MoE layer ``i``, ``blocks[i]`` its transformer
    block; ``skeleton`` maps every other tensor's on-disk name to its shape.
    """

    family: str
    router: RouterSpec
    top_k: int
    num_experts: int
    hidden_size: int
    intermediate_size: int
    """Rows of one expert's gate projection."""
    blocks: tuple[int, ...]
    experts_prefix: tuple[str, ...]
    expert_tensors: tuple[ExpertTensor, ...]
    skeleton: Mapping[str, TensorSpec]

    def expert_name(self, layer: int, expert: int, tensor: ExpertTensor) -> str:
        return f"{self.experts_prefix[layer]}.{expert}.{tensor.suffix}"


class BaseConfig(BaseModel):
    """The fields of ``config.json`` that all three families share; unknown keys belong to the modelling code."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: int = Field(ge=1, le=MAX_DIMENSION)
    hidden_size: int = Field(ge=1, le=MAX_DIMENSION)
    intermediate_size: int = Field(ge=1, le=MAX_DIMENSION)
    num_hidden_layers: int = Field(ge=1, le=10_000)
    num_attention_heads: int = Field(ge=1, le=MAX_DIMENSION)
    num_key_value_heads: int | None = Field(default=None, ge=1, le=MAX_DIMENSION)
    head_dim: int | None = Field(default=None, ge=1, le=MAX_DIMENSION)
    num_experts: int | None = Field(default=None, ge=1, le=32_767)
    num_local_experts: int | None = Field(default=None, ge=1, le=32_767)
    num_experts_per_tok: int = Field(ge=1)
    tie_word_embeddings: bool = False
    attention_bias: bool = False

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_size

    @property
    def key_value_size(self) -> int:
        return (self.num_key_value_heads or self.num_attention_heads) * self.head_size

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


ConfigT = TypeVar("ConfigT", bound=BaseConfig)


def parse_config(cls: type[ConfigT], data: Mapping[str, object], where: str) -> ConfigT:
    """Check a config's fields. Raises InvalidInput naming the first wrong one."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{where}: {place}: {first['msg']}", reason="CONFIG_INVALID") from error


def expert_count(config: BaseConfig, default: int, where: str) -> int:
    """Routed experts per layer: both spellings occur; they may not disagree, since which one wins varies by version."""
    stated = {count for count in (config.num_experts, config.num_local_experts) if count is not None}
    if len(stated) > 1:
        raise InvalidInput(
            f"{where}: num_experts {config.num_experts} and num_local_experts {config.num_local_experts} disagree; "
            "keep the right one",
            reason="CONFIG_INVALID",
        )
    return stated.pop() if stated else default


def check_top_k(top_k: int, num_experts: int, where: str) -> int:
    if top_k > num_experts:
        raise InvalidInput(
            f"{where}: num_experts_per_tok {top_k} exceeds the {num_experts} experts of a layer",
            reason="CONFIG_INVALID",
        )
    return top_k


def gated_expert(hidden: int, intermediate: int, *, gate: str, up: str, down: str) -> tuple[ExpertTensor, ...]:
    """A SwiGLU expert's three matrices: fields ``gate_up`` [2I, H] (gate rows first) and ``down`` [H, I]."""
    return (
        ExpertTensor(gate, "gate_up", 0, (intermediate, hidden)),
        ExpertTensor(up, "gate_up", intermediate, (intermediate, hidden)),
        ExpertTensor(down, "down", 0, (hidden, intermediate)),
    )


def outer_tensors(config: BaseConfig) -> dict[str, TensorSpec]:
    """Embedding, final norm and head; a tied head may be left out."""
    vocabulary = (config.vocab_size, config.hidden_size)
    return {
        "model.embed_tokens.weight": TensorSpec(vocabulary),
        "model.norm.weight": TensorSpec((config.hidden_size,)),
        "lm_head.weight": TensorSpec(vocabulary, optional=config.tie_word_embeddings),
    }


def attention_tensors(config: BaseConfig, block: int, *, norm_sizes: tuple[int, int] | None) -> dict[str, TensorSpec]:
    """Attention and the two norms of a block; ``norm_sizes`` are those of the query and key norms, if there are any."""
    hidden, query, key_value = config.hidden_size, config.query_size, config.key_value_size
    prefix = f"model.layers.{block}"
    tensors = {
        f"{prefix}.input_layernorm.weight": TensorSpec((hidden,)),
        f"{prefix}.post_attention_layernorm.weight": TensorSpec((hidden,)),
    }
    for name, rows, columns in (
        ("q_proj", query, hidden),
        ("k_proj", key_value, hidden),
        ("v_proj", key_value, hidden),
        ("o_proj", hidden, query),
    ):
        tensors[f"{prefix}.self_attn.{name}.weight"] = TensorSpec((rows, columns))
        if config.attention_bias:
            tensors[f"{prefix}.self_attn.{name}.bias"] = TensorSpec((rows,))
    if norm_sizes is not None:
        tensors[f"{prefix}.self_attn.q_norm.weight"] = TensorSpec((norm_sizes[0],))
        tensors[f"{prefix}.self_attn.k_norm.weight"] = TensorSpec((norm_sizes[1],))
    return tensors
