"""compressed-tensors with integer weights: packed into words along the input, or a byte each.

Activations and the cache of keys and values are never quantised here, whatever the settings say of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from premoe_runtime.formats.manifest import NumberSpec
from premoe_runtime.numbers.groups import ALL, SCALES, divided, even_groups, groups_text, index_fault, scales_fault
from premoe_runtime.numbers.scales import Data
from premoe_runtime.numbers.settings import GroupSize, Settings, parse_settings
from premoe_runtime.numbers.spec import NumberFormat, StoredTensor, names_of, unsupported

if TYPE_CHECKING:
    import torch

PACKED, BYTES = "pack-quantized", ("int-quantized", "naive-quantized")
_ACTIVATIONS = frozenset(
    f"{what}_{kind}" for what in ("input", "output", "q", "k", "v") for kind in ("scale", "zero_point", "global_scale")
)
LINEAR = "Linear"
"""The target that means every linear layer."""
MAX_REPEATS = 5
"""Of a pattern in config.json: names are short, so that as many take no time."""


class _Weights(Settings):
    type: Literal["int"] = "int"
    num_bits: Literal[4, 8]
    strategy: Literal["group", "channel"]
    group_size: GroupSize | None = None
    symmetric: bool = True
    actorder: Literal["group", "dynamic", "weight", "static", False] | None = None
    dynamic: Literal[False] = False

    @model_validator(mode="after")
    def _one_meaning(self) -> _Weights:
        if (self.strategy == "group") != bool(self.group_size):
            raise ValueError(f"strategy {self.strategy} does not go with group_size {self.group_size}")
        return self


class _Group(Settings):
    targets: tuple[str, ...] = (LINEAR,)
    weights: _Weights
    format: str | None = None


class _Config(Settings):
    config_groups: Mapping[str, _Group] = Field(min_length=1)
    format: Literal["pack-quantized", "int-quantized", "naive-quantized", "mixed-precision"]
    quantization_status: Literal["compressed"] = "compressed"
    sparsity_config: Mapping[str, Any] | None = None
    transform_config: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class CompressedIntegers(NumberFormat):
    """``weight_packed`` I32 [out, in · bits / 32] or ``weight`` I8 [out, in], and ``weight_scale`` [out, G].

    With ``weight_shape`` where weights are packed, ``weight_zero_point`` [out, G], packed along the output, where they
    are asymmetric, and ``weight_g_idx`` [in] where columns were grouped by importance. ``targets`` and ``kept`` are
    names, patterns (``re:``), or ``Linear``.
    """

    targets: tuple[str, ...] = (LINEAR,)

    method = "compressed-tensors"

    @classmethod
    def read(cls, config: Mapping[str, object], where: str) -> Self:
        found = parse_settings(_Config, config, where)
        sparse = (found.sparsity_config or {}).get("format", "dense")
        if sparse != "dense":
            raise unsupported(where, f"sparse weights ({sparse}) are not supported")
        if found.transform_config:
            raise unsupported(where, "transform_config changes activations, which is not done here")
        specs = {cls._spec(group, found.format, where) for group in found.config_groups.values()}
        if len(specs) > 1:
            raise unsupported(where, "config_groups store weights in several ways; one way for all is supported")
        targets = tuple(target for group in found.config_groups.values() for target in group.targets)
        kept = names_of(config, "ignore", where=where)
        for name in (*targets, *kept):
            if why := _not_safe(name):
                raise unsupported(where, f"{name!r} {why}")
        return cls(specs.pop(), kept, targets)

    @classmethod
    def _spec(cls, group: _Group, whole: str, where: str) -> NumberSpec:
        stored, weights = group.format or whole, group.weights
        if stored not in (PACKED, *BYTES):
            raise unsupported(where, f"format {stored!r} is not supported; use {PACKED} or {BYTES[0]}")
        return NumberSpec(
            method=cls.method,
            block=(1, weights.group_size or ALL),
            bits=weights.num_bits,
            packed=stored == PACKED,
            symmetric=weights.symmetric,
            by_importance=weights.actorder in ("group", "dynamic"),
        )

    @property
    def title(self) -> str:
        layout = "packed" if self.spec.packed else "bytes"
        return f"compressed-tensors (INT{self.spec.bits} {layout}, {groups_text(self.spec.block[1])})"

    def names(self, weight: str) -> tuple[str, ...]:
        return tuple(one.name for one in self._tensors(weight, 0, 0, 0))

    def tensors(self, weight: str, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        rows, columns = shape
        groups = even_groups(weight, columns, self.spec.block[1], self.title)
        if self.spec.packed:
            divided(weight, "columns", columns, 32 // self.spec.bits, self.title)
        return self._tensors(weight, rows, columns, groups)

    def _tensors(self, weight: str, rows: int, columns: int, groups: int) -> tuple[StoredTensor, ...]:
        spec = self.spec
        found = [StoredTensor(f"{weight}_scale", SCALES, (rows, groups))]
        if spec.packed:
            found.insert(0, StoredTensor(f"{weight}_packed", ("I32",), (rows, columns * spec.bits // 32)))
            found.append(StoredTensor(f"{weight}_shape", ("I64", "I32"), (2,)))
        else:
            found.insert(0, StoredTensor(weight, ("I8",), (rows, columns)))
        if not spec.symmetric:
            dtype, across = ("I32", -(-rows * spec.bits // 32)) if spec.packed else ("I8", rows)
            found.append(StoredTensor(f"{weight}_zero_point", (dtype,), (across, groups)))
        if spec.by_importance:
            found.append(StoredTensor(f"{weight}_g_idx", ("I32",), (columns,)))
        return tuple(found)

    def shape(self, stored: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        rows, wide = stored[0]
        return rows, wide * 32 // self.spec.bits if self.spec.packed else wide

    def dequantise(self, stored: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        from premoe_runtime.numbers.integers import unpacked, weights

        found = {one.removeprefix("weight"): tensor for one, tensor in zip(self.names("weight"), stored, strict=True)}
        zeros, index = found.get("_zero_point", 0), found.get("_g_idx")
        if not self.spec.packed:
            return weights(stored[0], found["_scale"], zeros, index).to(dtype)
        bits = self.spec.bits
        rows, columns = self.shape([tuple(stored[0].shape)])
        # Packed numbers and zero points are both stored more by half the range.
        middle = 2 ** (bits - 1) if self.spec.symmetric else unpacked(found["_zero_point"].T, bits, rows).T
        return weights(unpacked(stored[0], bits, columns), found["_scale"], middle, index).to(dtype)

    def converts(self, module: str) -> bool:
        return any(_means(one, module) for one in self.targets) and not any(_means(one, module) for one in self.kept)

    def needless(self, name: str) -> str:
        last = name.rpartition(".")[2]
        if last in _ACTIVATIONS:
            return "of quantised activations or keys and values, which are not quantised here"
        return "zero points of symmetric weights" if self.spec.symmetric and last == "weight_zero_point" else ""

    def fault(self, name: str, dtype: str, data: Data) -> str:
        if name.endswith("_g_idx"):
            return index_fault(data, self.spec.block[1])
        return scales_fault(dtype, data) if name.endswith("_scale") else ""


def _means(name: str, module: str) -> bool:
    """Whether a target or an exception is about a linear layer."""
    if name.startswith("re:"):
        return re.match(name.removeprefix("re:"), module) is not None
    return name in (LINEAR, module)


def _not_safe(name: str) -> str:
    """Why a pattern is not tried on names: it is none, or could take for ever; empty for others."""
    if not name.startswith("re:"):
        return ""
    repeats = re.findall(r"\)?[*+{]", name)
    if len(repeats) > MAX_REPEATS or any(one.startswith(")") for one in repeats):
        return f"repeats a group, or more than {MAX_REPEATS} times; write a simpler pattern"
    try:
        re.compile(name.removeprefix("re:"))
    except re.error as error:
        return f"is no pattern: {error}"
    return ""
