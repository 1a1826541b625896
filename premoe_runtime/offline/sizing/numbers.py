"""Number formats of weights as far as memory goes: bits of a number, and the scales of the numbers that share them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import DTYPE_BYTES

DTYPES: Mapping[str, str] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Number formats without scales, by the names that people give them."""
DEFAULT_DTYPE = "BF16"
"""Of a config that does not say what its weights are."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Numbers of ``bits``, of which ``block`` (rows, columns; 0 for all) share a scale and maybe a zero point.

    ``order_bytes``: of every column, where a format says in which order columns were made (GPTQ).
    """

    name: str
    bits: int
    block: tuple[int, int]
    scale_bytes: int
    zero_bits: int = 0
    order_bytes: int = 0

    def parts(self, rows: int, columns: int) -> tuple[int, ...]:
        """Bytes of a weight [rows, columns], then of what belongs to it: each a tensor of its own."""
        across, along = (-(-size // (block or size)) for size, block in zip((rows, columns), self.block, strict=True))
        blocks = across * along
        own = -(-rows * columns * self.bits // 8)
        also = (blocks * self.scale_bytes, -(-blocks * self.zero_bits // 8), columns * self.order_bytes)
        return (own, *(size for size in also if size))


WHAT_IF: Mapping[str, Packed] = {
    "fp8": Packed("fp8, scales of 128 x 128", 8, (128, 128), 4),
    "int8": Packed("int8, scales of rows", 8, (1, 0), 2),
    "int4": Packed("int4, scales of groups of 128", 4, (1, 128), 2),
    "mxfp4": Packed("mxfp4", 4, (1, 32), 1),
}
"""What ``--dtype`` takes beside ``DTYPES``: the usual form of each."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """How a checkpoint's tensors are stored: ``dtype``, but the weights of linear layers ``packed``, if it is given.

    ``wide``: modules that stay in ``dtype``, by a part of their names, or a regular expression after ``re:``.
    ``experts_only``: nothing but experts is packed.
    """

    dtype: str
    packed: Packed | None = None
    wide: tuple[str, ...] = ()
    experts_only: bool = False

    @property
    def name(self) -> str:
        own = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        if self.packed is None:
            return own
        return f"{self.packed.name}, {'all but experts' if self.experts_only else 'the rest'} {own}"

    @property
    def item(self) -> int:
        """Bytes of a number that is not packed, and of any number that an engine has unpacked."""
        return DTYPE_BYTES[self.dtype]

    def of(self, name: str) -> Packed | None:
        """The format of a linear layer's weight of this name."""
        module = name.rpartition(".")[0]
        stays = any(re.match(one[3:], module) if one.startswith("re:") else one in module for one in self.wide)
        return None if stays else self.packed


def what_if(name: str, dtype: str) -> Numbers:
    """Weights of linear layers as ``--dtype`` names it; ``dtype`` is that of the rest where the format has scales."""
    if name in DTYPES:
        return Numbers(DTYPES[name])
    return Numbers(dtype, WHAT_IF[name], experts_only=name == "mxfp4")


def stated_numbers(data: Mapping[str, object], where: str) -> Numbers:
    """What a config says of its checkpoint's weights. Raises InvalidInput (NUMBERS_UNKNOWN) for other formats."""
    stated = str(data.get("dtype") or data.get("torch_dtype") or "").removeprefix("torch.")
    names = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "": DEFAULT_DTYPE}
    if stated not in names:
        raise _unknown(where, f"dtype {stated[:40]!r}")
    quantisation = data.get("quantization_config")
    if quantisation is None:
        return Numbers(names[stated])
    if not isinstance(quantisation, dict):
        raise _unknown(where, "quantization_config that is no object")
    method = str(quantisation.get("quant_method"))
    try:
        return _quantised(method, quantisation, names[stated])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unknown(where, f"quantization_config of method {method[:40]!r}") from error


def _quantised(method: str, said: Mapping[str, object], dtype: str) -> Numbers:
    wide = tuple(str(one) for one in _listed(said.get("modules_to_not_convert") or said.get("ignore")))
    if method == "fp8":
        rows, columns = _listed(said.get("weight_block_size")) or (0, 0)
        each = f"{rows} x {columns}" if rows else "whole weights"
        return Numbers(dtype, Packed(f"fp8, scales of {each}", 8, (_count(rows), _count(columns)), 4), wide)
    if method == "mxfp4":
        return Numbers(dtype, WHAT_IF["mxfp4"], wide, experts_only=True)
    if method in ("awq", "gptq"):
        bits, group = _count(said["bits"], 1), max(0, int(str(said["group_size"])))
        order = 4 if method == "gptq" else 0
        zero = bits if method == "gptq" or said.get("zero_point") else 0
        return Numbers(dtype, Packed(f"{method} int{bits}, {_groups(group)}", bits, (1, group), 2, zero, order), wide)
    if method == "compressed-tensors":
        return Numbers(dtype, _compressed(said), wide)
    raise ValueError(method)


def _compressed(said: Mapping[str, object]) -> Packed:
    """The one form that all groups of a compressed-tensors config give weights."""
    groups = said["config_groups"]
    forms = [group["weights"] for group in groups.values()]  # type: ignore[attr-defined]
    if not forms or any(form != forms[0] for form in forms):
        raise ValueError("its groups differ")
    form = forms[0]
    bits, kind, strategy = _count(form["num_bits"], 1), form["type"], form["strategy"]
    blocks = {
        "channel": (1, 0),
        "tensor": (0, 0),
        "group": (1, int(form.get("group_size") or 0)),
        "block": tuple(form.get("block_structure") or (128, 128)),
    }
    rows, columns = blocks[strategy]
    zero = 0 if form.get("symmetric", True) else bits
    shared = _groups(columns) if strategy == "group" else f"scales of each {strategy}"
    small = kind == "float" and bits == 4
    name = f"{'fp' if kind == 'float' else 'int'}{bits}, {shared}"
    return Packed(name, bits, (rows, columns), 1 if small else 2, zero)


def _groups(size: int) -> str:
    return f"scales of groups of {size}" if size else "scales of rows"


def _listed(value: object) -> Sequence[object]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise TypeError("no list")
    return value


def _count(value: object, least: int = 0) -> int:
    number = int(str(value))
    if not least <= number <= 1 << 20:
        raise ValueError(f"{number} is no such number")
    return number


def _unknown(where: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"{where}: {what} is not known; say with --dtype what to count with: {', '.join((*DTYPES, *WHAT_IF))}",
        reason="NUMBERS_UNKNOWN",
    )
