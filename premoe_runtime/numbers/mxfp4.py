"""MXFP4 of GPT-OSS's experts: 32 numbers of 4 bits share an exponent of 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import NumberSpec
from premoe_runtime.numbers.scales import Data
from premoe_runtime.numbers.spec import NumberFormat, StoredTensor, names_of

if TYPE_CHECKING:
    import torch

GROUP = 32
_BIAS = 127
_NAN = 255
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Of e2m1, by its 4 bits."""


class Mxfp4(NumberFormat):
    """``X_blocks`` U8 [rows, columns / 32, 16], the first of two numbers in the low bits, and ``X_scales`` U8."""

    method = "mxfp4"
    experts_only = True

    @classmethod
    def read(cls, config: Mapping[str, object], where: str) -> Self:
        spec = NumberSpec(method=cls.method, block=(1, GROUP))
        return cls(spec, names_of(config, "modules_to_not_convert", where=where))

    @property
    def title(self) -> str:
        return f"MXFP4 (e2m1, groups of {GROUP})"

    def names(self, weight: str) -> tuple[str, ...]:
        return (f"{weight}_blocks", f"{weight}_scales")

    def tensors(self, weight: str, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        rows, columns = shape
        groups, left = divmod(columns, GROUP)
        if left:
            raise InvalidInput(
                f"{weight} has {columns} columns, which are no groups of {GROUP} for {self.title}",
                reason="NUMBERS_UNSUPPORTED",
            )
        blocks, scales = self.names(weight)
        return (
            StoredTensor(blocks, ("U8",), (rows, groups, GROUP // 2)),
            StoredTensor(scales, ("U8",), (rows, groups)),
        )

    def shape(self, stored: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        rows, groups, _ = stored[0]
        return rows, groups * GROUP

    def dequantise(self, stored: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        import torch

        blocks, scales = stored
        # In bfloat16 like transformers: every number is exact there, but for those beyond its range.
        values = torch.tensor(_VALUES, dtype=torch.bfloat16, device=blocks.device)
        pairs = torch.stack([values[(blocks & 15).int()], values[(blocks >> 4).int()]], dim=-1)
        made = torch.ldexp(pairs.flatten(-2), (scales.int() - _BIAS).unsqueeze(-1))
        return made.to(torch.bfloat16).flatten(-2).to(dtype)

    def fault(self, name: str, dtype: str, data: Data) -> str:
        return (
            "a scale that is NaN (255)"
            if name.endswith("_scales") and (np.frombuffer(data, np.uint8) == _NAN).any()
            else ""
        )
