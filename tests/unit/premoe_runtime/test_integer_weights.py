"""Integer weights, packed as checkpoints have them, become what their formats define, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.integers import awq, compressed, gptq, in_groups, rounded

from premoe_runtime.numbers.registry import read_numbers
from premoe_runtime.numbers.spec import NumberFormat

each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])


def numbers(**config: object) -> NumberFormat:
    found = read_numbers(config)
    assert found is not None
    return found


def weight(rows: int = 48, columns: int = 64, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(rows + columns)).to(dtype)


def order(columns: int = 64) -> Any:
    return np.random.default_rng(1).permutation(columns)


def dequantised(found: NumberFormat, stored: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Of the tensors of a module ``x``, after looking at each as packing does."""
    shape = found.shape([tuple(stored[name].shape) for name in found.names("x.weight")])
    wanted = found.tensors("x.weight", shape)
    assert {one.name: one.shape for one in wanted} == {name: tuple(one.shape) for name, one in stored.items()}
    return found.dequantise([stored[one.name] for one in wanted], dtype)


@each_dtype
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("group_size", "symmetric", "ordered"), [(16, True, False), (-1, False, False), (16, False, True), (24, True, True)]
)
def test_gptq(layout: str, bits: int, group_size: int, symmetric: bool, ordered: bool, dtype: torch.dtype) -> None:
    found = numbers(quant_method="gptq", bits=bits, group_size=group_size, checkpoint_format=layout)
    by = order() if ordered else None
    integers = rounded(weight(), bits=bits, group_size=group_size, symmetric=symmetric, dtype=dtype, order=by)
    stored = gptq("x", integers, bits=bits, second=layout == "gptq_v2")
    made = dequantised(found, stored, dtype)
    assert torch.equal(made, integers.plain())
    assert 0 < (made.float() - weight()).abs().max() < (0.5 if bits == 4 else 0.05)


def test_values_are_rounded_to_the_dtype_of_their_scales_first() -> None:
    found = numbers(quant_method="gptq", bits=4, group_size=16)
    integers = rounded(weight(), bits=4, group_size=16, symmetric=False, dtype=torch.float16)
    stored = gptq("x", integers, bits=4, second=False)
    assert torch.equal(dequantised(found, stored, torch.bfloat16), integers.plain().bfloat16())


@pytest.mark.parametrize("group", [4, -7, 2**31 - 1])
def test_a_forged_group_harms_nothing_but_its_column(group: int) -> None:
    found = numbers(quant_method="gptq", bits=4, group_size=16)
    integers = rounded(weight(), bits=4, group_size=16, symmetric=True, dtype=torch.float32, order=order())
    stored = gptq("x", integers, bits=4, second=False)
    forged = stored["x.g_idx"].clone()
    forged[5] = group
    made = dequantised(found, {**stored, "x.g_idx": forged}, torch.float32)
    columns = torch.arange(64) != 5
    assert torch.equal(made[:, columns], integers.plain()[:, columns])
    assert made.isfinite().all()


@each_dtype
@pytest.mark.parametrize("group_size", [16, 64, -1])
def test_awq(group_size: int, dtype: torch.dtype) -> None:
    found = numbers(quant_method="awq", bits=4, group_size=group_size, version="GEMM", zero_point=True)
    integers = rounded(weight(), bits=4, group_size=group_size, symmetric=False, dtype=dtype)
    assert torch.equal(dequantised(found, awq("x", integers), dtype), integers.plain())


@each_dtype
@pytest.mark.parametrize("layout", ["pack-quantized", "int-quantized"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_is_what_its_library_makes_of_it(
    layout: str, bits: int, group_size: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    group = in_groups(layout, bits=bits, group_size=group_size, symmetric=symmetric)
    found = numbers(quant_method="compressed-tensors", format=layout, config_groups={"group_0": group})
    stored, plain = compressed("x", weight(44, 64, dtype), group)
    assert torch.equal(dequantised(found, stored, dtype), plain)
