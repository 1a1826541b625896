"""Tiny checkpoints with integer weights, laid out as the real ones are, and the same models with plain weights.

compressed-tensors is written and read back by its own library. GPTQ and AWQ have none that installs everywhere: they
are written here from the formats' definitions, and their plain weights come from the integers before they are packed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

from support.quantised import Tensors, read, write
from support.tiny import tiny_checkpoint

LINEAR = r".*(_proj|\.w[123])"
"""Names of the linear layers of blocks, routers aside."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of every nibble of a word, lowest bits first."""


class Integers(NamedTuple):
    """Weights as integers: ``codes`` [out, in], ``scales`` and ``zeros`` [out, G], ``groups`` [in]."""

    codes: npt.NDArray[np.int64]
    scales: torch.Tensor
    zeros: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int32]

    def plain(self) -> torch.Tensor:
        """(code - zero) · scale, exact in float32, rounded once to the scales' dtype."""
        difference = torch.from_numpy((self.codes - self.zeros[:, self.groups]).astype(np.float32))
        return (difference * self.scales.float()[:, self.groups]).to(self.scales.dtype)


def rounded(
    weight: torch.Tensor,
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    dtype: torch.dtype,
    order: npt.NDArray[np.int64] | None = None,
) -> Integers:
    """To the nearest, group by group; ``order``: columns by importance, whose runs of ``group_size`` are the groups."""
    columns = weight.shape[1]
    size = columns if group_size == -1 else group_size
    groups = np.empty(columns, dtype=np.int32)
    groups[np.arange(columns) if order is None else order] = np.arange(columns) // size
    values, top = weight.float().numpy(), 2**bits - 1
    chosen = [values[:, groups == group] for group in range(groups.max() + 1)]
    if symmetric:
        width = np.stack([2 * np.abs(one).max(1) for one in chosen], 1)
    else:
        width = np.stack([one.max(1).clip(min=0) - one.min(1).clip(max=0) for one in chosen], 1)
    scales = torch.from_numpy(width / top).to(dtype)
    steps = scales.float().numpy()
    lowest = np.stack([one.min(1).clip(max=0) for one in chosen], 1)
    # GPTQ v1 stores one less, so its zero points begin at 1.
    zeros = np.full(width.shape, 2 ** (bits - 1)) if symmetric else np.rint(-lowest / steps).clip(1, top)
    codes = np.rint(values / steps[:, groups] + zeros[:, groups]).clip(0, top)
    return Integers(codes.astype(np.int64), scales, zeros.astype(np.int64), groups)


def words(values: npt.NDArray[np.int64], bits: int) -> torch.Tensor:
    """i32[n, c · bits / 32]: integers of each row side by side in words, lowest bits first."""
    per_word = 32 // bits
    rows = values.reshape(len(values), -1, per_word) << (bits * np.arange(per_word))
    return torch.from_numpy(rows.sum(-1).astype(np.uint32).view(np.int32))


def gptq(module: str, weight: Integers, *, bits: int, second: bool) -> Tensors:
    """What GPTQ stores for a linear weight; ``second``: zero points as they are, not one less."""
    stored = (weight.zeros if second else weight.zeros - 1) & (2**bits - 1)
    return {
        f"{module}.qweight": words(weight.codes, bits).T.contiguous(),
        f"{module}.qzeros": words(stored.T, bits),
        f"{module}.scales": weight.scales.T.contiguous(),
        f"{module}.g_idx": torch.from_numpy(weight.groups),
    }


def awq(module: str, weight: Integers) -> Tensors:
    """What AWQ's ``gemm`` stores for a linear weight: 4 bits, columns of a word in an order of its own."""

    def shuffled(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        return words(rows.reshape(len(rows), -1, 8)[..., AWQ_ORDER].reshape(len(rows), -1), 4)

    return {
        f"{module}.qweight": shuffled(weight.codes.T),
        f"{module}.qzeros": shuffled(weight.zeros.T),
        f"{module}.scales": weight.scales.T.contiguous(),
    }


def in_groups(layout: str, *, bits: int, group_size: int | None, symmetric: bool, **more: Any) -> dict[str, Any]:
    """A group of ``config_groups`` as llm-compressor writes it; ``group_size`` None: a scale a channel."""
    activations = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
    return {
        "targets": ["Linear"],
        "input_activations": activations if layout == "int-quantized" else None,
        "output_activations": None,
        "format": more.pop("format", layout),
        "weights": {
            "num_bits": bits,
            "type": "int",
            "symmetric": symmetric,
            "strategy": "group" if group_size else "channel",
            "group_size": group_size,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
            **more,
        },
    }


def compressed_config(
    layout: str, *, bits: int, group_size: int | None, symmetric: bool = True, ignore: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    """``quantization_config`` as llm-compressor writes it; ``more``: settings of the weights."""
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": in_groups(layout, bits=bits, group_size=group_size, symmetric=symmetric, **more)},
        "ignore": ["lm_head", "re:.*mlp.gate$", *ignore],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.12.2",
    }


def compressed(module: str, weight: torch.Tensor, group: Mapping[str, Any]) -> tuple[Tensors, torch.Tensor]:
    """What compressed-tensors stores for a linear weight, and what the library makes of it again."""
    scheme = QuantizationScheme.model_validate(group)
    assert scheme.weights is not None
    by_group = weight.reshape(len(weight), -1, scheme.weights.group_size or weight.shape[1])
    scale, zero = calculate_qparams(by_group.amin(-1), by_group.amax(-1), scheme.weights)
    compressor = BaseCompressor.get_value_from_registry(group["format"])
    stored = compressor.compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme)
    plain = compressor.decompress(stored, scheme)["weight"].to(weight.dtype)
    return {f"{module}.{name}": one.contiguous() for name, one in stored.items()}, plain


def compressed_by_importance(module: str, weight: Integers, *, bits: int) -> Tensors:
    """What older llm-compressors stored of packed weights whose columns were grouped by importance."""
    return {
        f"{module}.weight_packed": words(weight.codes, bits),
        f"{module}.weight_scale": weight.scales,
        f"{module}.weight_shape": torch.tensor(weight.codes.shape),
        f"{module}.weight_g_idx": torch.from_numpy(weight.groups),
    }


class Quantised(NamedTuple):
    """A checkpoint in a number format, and the same model with the weights that its integers stand for."""

    stored: Path
    plain: Path


Compress = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
"""Of a module's name and its weight: what is stored for it, and the weight that this stands for."""


def compress_of(config: Mapping[str, Any]) -> Compress:
    """The writer of a ``quantization_config``."""
    method = config["quant_method"]
    if method == "compressed-tensors":
        (group,) = config["config_groups"].values()
        if group["weights"]["actorder"] != "group":
            return lambda module, weight: compressed(module, weight, group)
        bits, size, symmetric = group["weights"]["num_bits"], group["weights"]["group_size"], True
    else:
        bits, size, symmetric = config["bits"], config["group_size"], config.get("sym", False)

    def compress(module: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        random = np.random.default_rng(len(module))
        order = random.permutation(weight.shape[1]) if config.get("desc_act", method != "awq") else None
        made = rounded(weight, bits=bits, group_size=size, symmetric=symmetric, dtype=weight.dtype, order=order)
        if method == "gptq":
            stored = gptq(module, made, bits=bits, second=config["checkpoint_format"] == "gptq_v2")
        else:
            stored = awq(module, made) if method == "awq" else compressed_by_importance(module, made, bits=bits)
        return stored, made.plain()

    return compress


def quantised(
    folder: Path,
    config: Mapping[str, Any],
    family: str = "qwen3_moe",
    dtype: torch.dtype = torch.bfloat16,
    only: str = LINEAR,
    **overrides: Any,
) -> Quantised:
    """A tiny random checkpoint whose modules named ``only`` are quantised as ``config`` says."""
    plain = tiny_checkpoint(folder / "plain", family, dtype, **overrides)
    whole = read(plain)
    kept, stored, compress = dict(whole), dict(whole), compress_of(config)
    for name, weight in whole.items():
        module = name.removesuffix(".weight")
        if re.fullmatch(only, module) and weight.ndim == 2:
            parts, kept[name] = compress(module, stored.pop(name))
            stored |= parts
    return Quantised(write(shutil.copytree(plain, folder / "stored"), stored, config), write(plain, kept, None))
