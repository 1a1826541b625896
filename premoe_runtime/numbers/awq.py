"""AWQ as AutoAWQ's ``gemm`` writes it: 4 bits, words along the output, with their columns in an order of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field

from premoe_runtime.formats.manifest import NumberSpec
from premoe_runtime.numbers.groups import SCALES, divided, even_groups, groups_text, scales_fault
from premoe_runtime.numbers.scales import Data
from premoe_runtime.numbers.settings import GroupSize, Settings, parse_settings
from premoe_runtime.numbers.spec import NumberFormat, StoredTensor, names_of

if TYPE_CHECKING:
    import torch

A_WORD = 8
"""Numbers in one."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class _Config(Settings):
    bits: Literal[4] = Field(validation_alias=AliasChoices("bits", "w_bit"))
    group_size: GroupSize = Field(validation_alias=AliasChoices("group_size", "q_group_size"))
    version: Annotated[Literal["gemm"], BeforeValidator(_lower)] = "gemm"
    zero_point: Literal[True] = True


class Awq(NumberFormat):
    """``qweight`` [in, out / 8], ``qzeros`` [G, out / 8], ``scales`` [G, out]; groups are runs of columns."""

    method = "awq"

    @classmethod
    def read(cls, config: Mapping[str, object], where: str) -> Self:
        size = parse_settings(_Config, config, where).group_size
        kept = names_of(config, "modules_to_not_convert", where=where)
        return cls(NumberSpec(method=cls.method, block=(1, size), bits=4), kept)

    @property
    def title(self) -> str:
        return f"AWQ (4 bits, {groups_text(self.spec.block[1])})"

    def names(self, weight: str) -> tuple[str, ...]:
        module = weight.removesuffix("weight")
        return tuple(f"{module}{name}" for name in ("qweight", "qzeros", "scales"))

    def tensors(self, weight: str, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        rows, columns = shape
        words = divided(weight, "rows", rows, A_WORD, self.title)
        groups = even_groups(weight, columns, self.spec.block[1], self.title)
        values, zeros, scales = self.names(weight)
        return (
            StoredTensor(values, ("I32",), (columns, words)),
            StoredTensor(zeros, ("I32",), (groups, words)),
            StoredTensor(scales, SCALES, (groups, rows)),
        )

    def shape(self, stored: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        columns, words = stored[0]
        return words * A_WORD, columns

    def dequantise(self, stored: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        from premoe_runtime.numbers.integers import unpacked_awq, weights

        words, zeros, scales = stored
        return weights(unpacked_awq(words), scales.T, unpacked_awq(zeros)).to(dtype)

    def fault(self, name: str, dtype: str, data: Data) -> str:
        return scales_fault(dtype, data) if name.endswith(".scales") else ""
