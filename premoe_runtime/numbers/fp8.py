"""FP8 (e4m3) with a scale a block of weights, as DeepSeek, Qwen3 and MiniMax-M2 ship it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from premoe_runtime.formats.manifest import NumberSpec
from premoe_runtime.numbers.scales import Data, scale_fault
from premoe_runtime.numbers.spec import NumberFormat, StoredTensor, names_of, unsupported

if TYPE_CHECKING:
    import torch

MAX_BLOCK = 1 << 16
_SCALES = "_scale_inv"


class Fp8(NumberFormat):
    """``X`` F8_E4M3 [rows, columns], and ``X_scale_inv`` [⌈rows / m⌉, ⌈columns / n⌉], factors of its blocks."""

    method = "fp8"

    @classmethod
    def read(cls, config: Mapping[str, object], where: str) -> Self:
        kind, scheme = config.get("fmt", "e4m3"), config.get("activation_scheme", "dynamic")
        if kind not in ("e4m3", "float8_e4m3fn"):
            raise unsupported(where, f"fmt {kind!r} is not e4m3")
        if scheme != "dynamic":
            raise unsupported(
                where, f"activation_scheme {scheme!r} fixes the scales of activations, which are not applied here"
            )
        block = config.get("weight_block_size", [128, 128])
        if (
            not isinstance(block, list)
            or len(block) != 2
            or not all(type(side) is int and 1 <= side <= MAX_BLOCK for side in block)
        ):
            raise unsupported(
                where, f"weight_block_size {block!r} is not [rows, columns]; one scale a tensor or row is not supported"
            )
        spec = NumberSpec(method=cls.method, block=(block[0], block[1]))
        return cls(spec, names_of(config, "modules_to_not_convert", "ignored_layers", where=where))

    @property
    def title(self) -> str:
        return "FP8 (e4m3, blocks of {} x {})".format(*self.spec.block)

    def names(self, weight: str) -> tuple[str, ...]:
        return (weight, weight + _SCALES)

    def tensors(self, weight: str, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        scales = tuple(-(-size // side) for size, side in zip(shape, self.spec.block, strict=True))
        return (
            StoredTensor(weight, ("F8_E4M3",), shape),
            StoredTensor(weight + _SCALES, ("F32", "BF16"), scales),
        )

    def shape(self, stored: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return stored[0]

    def dequantise(self, stored: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        weight, scales = stored
        rows, columns = self.spec.block
        made = weight.new_empty(weight.shape, dtype=dtype)
        # A row of blocks at a time, so that the scales are never spread out over the whole weight.
        for index, scale in enumerate(scales.float()):
            part = slice(index * rows, (index + 1) * rows)
            made[part] = weight[part].float() * scale.repeat_interleave(columns)[: weight.shape[1]]
        return made

    def fault(self, name: str, dtype: str, data: Data) -> str:
        return scale_fault(dtype, data) if name.endswith(_SCALES) else ""
