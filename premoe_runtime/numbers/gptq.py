"""GPTQ as AutoGPTQ and GPTQModel write it: integers in words along the input, scales and zero points by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

from premoe_runtime.formats.manifest import NumberSpec
from premoe_runtime.numbers.groups import SCALES, divided, groups_text, index_fault, num_groups, scales_fault
from premoe_runtime.numbers.scales import Data
from premoe_runtime.numbers.settings import GroupSize, Settings, parse_settings
from premoe_runtime.numbers.spec import ZEROS, NumberFormat, StoredTensor, unsupported

if TYPE_CHECKING:
    import torch


class _Config(Settings):
    bits: Literal[4, 8]
    group_size: GroupSize
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    pack_dtype: Literal["int32"] = "int32"
    is_marlin_format: Literal[False] = False
    dynamic: Mapping[str, object] | None = None


class Gptq(NumberFormat):
    """Of n = 32 / bits numbers a word: ``qweight`` [in / n, out], ``qzeros`` [G, out / n], ``scales`` [G, out].

    ``g_idx`` [in] is the group of every column, so that columns may have been grouped by importance. The first version
    stores zero points less by one.
    """

    method = "gptq"

    @classmethod
    def read(cls, config: Mapping[str, object], where: str) -> Self:
        found = parse_settings(_Config, config, where)
        if own := [module for module in found.dynamic or () if not module.startswith("-:")]:
            raise unsupported(where, f"dynamic gives {own[0]!r} settings of its own; all modules must share theirs")
        less = 0 if found.checkpoint_format == "gptq_v2" else 1
        return cls(NumberSpec(method=cls.method, block=(1, found.group_size), bits=found.bits, zeros_less=less))

    @property
    def title(self) -> str:
        return f"GPTQ ({self.spec.bits} bits, {groups_text(self.spec.block[1])})"

    def names(self, weight: str) -> tuple[str, ...]:
        module = weight.removesuffix("weight")
        return tuple(f"{module}{name}" for name in ("qweight", "qzeros", "scales", "g_idx"))

    def tensors(self, weight: str, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        rows, columns = shape
        a_word, groups = 32 // self.spec.bits, num_groups(columns, self.spec.block[1])
        words = divided(weight, "columns", columns, a_word, self.title)
        words_across = divided(weight, "rows", rows, a_word, self.title)
        values, zeros, scales, index = self.names(weight)
        return (
            StoredTensor(values, ("I32",), (words, rows)),
            StoredTensor(zeros, ("I32",), (groups, words_across)),
            StoredTensor(scales, SCALES, (groups, rows)),
            StoredTensor(index, ("I32",), (columns,)),
        )

    def shape(self, stored: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        words, rows = stored[0]
        return rows, words * (32 // self.spec.bits)

    def dequantise(self, stored: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        from premoe_runtime.numbers.integers import unpacked, weights

        words, zeros, scales, index = stored
        values = unpacked(words.T, self.spec.bits, len(index))
        points = (unpacked(zeros, self.spec.bits, scales.shape[1]) + self.spec.zeros_less) & (2**self.spec.bits - 1)
        return weights(values, scales.T, points.T, index).to(dtype)

    def needless(self, name: str) -> str:
        return ZEROS if name.endswith(".bias") else ""

    def fault(self, name: str, dtype: str, data: Data) -> str:
        if name.endswith(".g_idx"):
            return index_fault(data, self.spec.block[1])
        return scales_fault(dtype, data) if name.endswith(".scales") else ""
