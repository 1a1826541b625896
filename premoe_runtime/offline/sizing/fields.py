"""The fields of ``config.json`` that decide memory, under the names that families give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from premoe_runtime.families.spec import context_length
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.manifest import Dimension
from premoe_runtime.formats.safetensors import shown

Width = Annotated[int, Field(ge=0, le=1 << 24)]


ConfigT = TypeVar("ConfigT", bound="SizedConfig")


def _also(name: str, *others: str) -> AliasChoices:
    return AliasChoices(name, *others)


class SizedConfig(BaseModel):
    """What attention keeps of a token and makes of it, and how long a sequence may get.

    ``families.stock`` knows more, but brings torch, for which whoever asks for sizes should not wait.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: Dimension
    hidden_size: Dimension
    num_hidden_layers: int = Field(ge=1, le=10_000)
    num_attention_heads: Dimension
    num_key_value_heads: Dimension | None = None
    head_dim: Dimension | None = None
    kv_lora_rank: Dimension | None = Field(None, validation_alias=_also("kv_lora_rank", "attention_kv_lora_dim"))
    q_lora_rank: Dimension | None = Field(None, validation_alias=_also("q_lora_rank", "attention_q_lora_dim"))
    qk_nope_head_dim: Width = Field(0, validation_alias=_also("qk_nope_head_dim", "attention_qk_dim"))
    qk_rope_head_dim: Width = Field(0, validation_alias=_also("qk_rope_head_dim", "attention_qk_rope_dim"))
    v_head_dim: Width = Field(0, validation_alias=_also("v_head_dim", "attention_v_dim"))
    max_position_embeddings: int | None = Field(None, ge=1)
    rope_parameters: dict[str, object] | None = None
    rope_scaling: dict[str, object] | None = None

    @property
    def head_size(self) -> int:
        if self.kv_lora_rank:
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_size

    @property
    def key_value_size(self) -> int:
        return (self.num_key_value_heads or self.num_attention_heads) * self.head_size

    @property
    def cached_size(self) -> int:
        """Numbers that a layer keeps of a token: keys and values, or MLA's latents."""
        return self.kv_lora_rank + self.qk_rope_head_dim if self.kv_lora_rank else 2 * self.key_value_size

    @property
    def expanded_size(self) -> int:
        """Numbers that one layer at a time makes of a token's latents; 0 where it keeps keys and values."""
        return self.num_attention_heads * (self.head_size + self.v_head_dim) if self.kv_lora_rank else 0

    @property
    def max_context(self) -> int | None:
        """Longest sequence, rope scaling included."""
        rope = self.rope_scaling or self.rope_parameters
        return self.max_position_embeddings and context_length(self.max_position_embeddings, rope)


class UsualConfig(SizedConfig):
    """All that decides the size of a decoder whose blocks are attention, then one MLP or experts and shared ones.

    Nothing has a default that a model of another size could have: stock configurations have those of one model.
    """

    intermediate_size: Dimension
    moe_intermediate_size: Dimension
    n_routed_experts: int = Field(
        ge=1,
        le=32_767,
        validation_alias=_also("n_routed_experts", "num_routed_experts", "num_experts", "num_local_experts"),
    )
    num_experts_per_tok: int = Field(ge=1)
    n_shared_experts: int = Field(0, ge=0, le=32_767, validation_alias=_also("n_shared_experts", "num_shared_experts"))
    first_k_dense_replace: int = Field(
        0, ge=0, le=10_000, validation_alias=_also("first_k_dense_replace", "num_dense_layers")
    )
    tie_word_embeddings: bool = False
    attention_bias: bool = False


def read_fields(cls: type[ConfigT], data: bytes | Mapping[str, object], where: str) -> ConfigT:
    """The fields of a config. Raises CorruptData (no JSON object) and InvalidInput (missing or impossible fields)."""
    try:
        return cls.model_validate_json(data) if isinstance(data, bytes) else cls.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        kind = InvalidInput if first["loc"] else CorruptData
        place = ".".join([where, *map(str, first["loc"])])
        raise kind(f"{shown(place)}: {shown(first['msg'])}", reason="CONFIG_INVALID") from error
