"""The fields of ``config.json`` that all families share, for those who only want sizes and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from premoe_runtime.formats.errors import InvalidInput

MAX_DIMENSION = 1 << 24


class BaseConfig(BaseModel):
    """The fields of ``config.json`` that all families share; unknown keys belong to the modelling code."""

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


def context_length(max_positions: int, rope: Mapping[str, object] | None) -> int:
    """Longest sequence of a config with these positions and rope parameters; scaling lengthens it by its factor.

    YaRN says the length that it starts from; older configs call the kind ``type``.
    """
    rope = rope or {}
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if kind not in ("yarn", "linear") or not isinstance(factor, int | float):
        return max_positions
    start = rope.get("original_max_position_embeddings") if kind == "yarn" else None
    return max(max_positions, int((start if isinstance(start, int) else max_positions) * factor))
