"""Checkpoints with integer weights that cannot be right, or cannot be run: one clear line, and nothing is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.integers import compressed_config, quantised
from support.quantised import Tensors, configure, read, write

from premoe_runtime.formats.errors import CorruptData, InvalidInput, PremoeError
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import PackResult, write_pack
from premoe_runtime.storage import open_store

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
PACKED = compressed_config("pack-quantized", bits=4, group_size=32)
BYTES = compressed_config("int-quantized", bits=8, group_size=None)
ROUTER = "model.layers.0.mlp.gate"
QUERY = "model.layers.0.self_attn.q_proj"
GATE = "model.layers.1.mlp.experts.5.gate_proj"


def pack(folder: Path, checkpoint: Path) -> PackResult:
    return write_pack(open_source(str(checkpoint)), open_store((folder / "store").as_uri()))


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[name].view(-1)[3:4].fill_(value)


def add(name: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


def cut(name: str, columns: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name][..., :columns]})


@pytest.mark.parametrize(
    ("config", "spoil", "kind", "message", "reason"),
    [
        (GPTQ, drop(f"{GATE}.scales"), CorruptData, rf"{GATE}.scales is missing \(.* GPTQ", "TENSOR_MISSING"),
        (GPTQ, drop(f"{QUERY}.g_idx"), CorruptData, f"{QUERY}.g_idx is missing", "TENSOR_MISSING"),
        (GPTQ, put(f"{GATE}.g_idx", 2), CorruptData, "holds group 2 for a column, and there are 2", "SCALES_INVALID"),
        (GPTQ, put(f"{QUERY}.g_idx", -1), CorruptData, f"{QUERY}.g_idx holds group -1", "SCALES_INVALID"),
        (GPTQ, put(f"{GATE}.scales", float("nan")), CorruptData, "a scale that is NaN or infinite", "SCALES_INVALID"),
        (
            GPTQ,
            lambda tensors: tensors[f"{GATE}.scales"].zero_(),
            CorruptData,
            f"{GATE}.scales holds a scale that is zero",
            "SCALES_INVALID",
        ),
        (GPTQ, cut(f"{GATE}.qweight", 24), CorruptData, r"qweight has shape \[8, 24\]", "TENSOR_SHAPE"),
        (
            GPTQ,
            add(f"{ROUTER}.qweight", torch.zeros((8, 16), dtype=torch.int32)),
            InvalidInput,
            f"unexpected tensor {ROUTER}.qweight .*routers must not be quantised",
            "UNEXPECTED_TENSOR",
        ),
        (
            GPTQ,
            add("model.layers.0.mlp.experts.gate_up_proj", torch.zeros((16, 64, 64))),
            InvalidInput,
            "mlp.experts.gate_up_proj .*GPTQ .* experts are stored one by one",
            "UNEXPECTED_TENSOR",
        ),
        (
            AWQ,
            lambda tensors: tensors.update({f"{GATE}.weight": torch.zeros(32, 64)}) or tensors.pop(f"{GATE}.qweight"),
            InvalidInput,
            f"{GATE}.weight .*AWQ .* so every weight of a routed expert must be stored so",
            "UNEXPECTED_TENSOR",
        ),
        (AWQ, drop(f"{GATE}.qzeros"), CorruptData, rf"{GATE}.qzeros is missing \(.* AWQ", "TENSOR_MISSING"),
        (PACKED, drop(f"{GATE}.weight_scale"), CorruptData, "weight_scale is missing", "TENSOR_MISSING"),
        (PACKED, drop(f"{QUERY}.weight_shape"), CorruptData, "q_proj.weight_shape is missing", "TENSOR_MISSING"),
        (PACKED, cut(f"{GATE}.weight_packed", 4), CorruptData, r"weight_packed has shape \[32, 4\]", "TENSOR_SHAPE"),
        (
            PACKED,
            add(f"{GATE}.weight_scale", torch.ones((32, 2), dtype=torch.float64)),
            InvalidInput,
            "weight_scale has dtype F64; supported: F16, BF16, F32",
            "DTYPE_UNSUPPORTED",
        ),
        (BYTES, drop(f"{GATE}.weight_scale"), CorruptData, "weight_scale is missing", "TENSOR_MISSING"),
        (
            BYTES,
            drop(f"{QUERY}.weight_scale"),
            InvalidInput,
            rf"{QUERY}.weight has dtype I8; .* \({QUERY}.weight_scale is missing\)",
            "DTYPE_UNSUPPORTED",
        ),
    ],
)
def test_tensors_that_cannot_be_right(
    tmp_path: Path,
    config: Mapping[str, Any],
    spoil: Callable[[Tensors], object],
    kind: type[PremoeError],
    message: str,
    reason: str,
) -> None:
    checkpoint = quantised(tmp_path, config).stored
    tensors = read(checkpoint)
    spoil(tensors)
    with pytest.raises(kind, match=message) as error:
        pack(tmp_path, write(checkpoint, tensors, config))
    assert error.value.reason == reason
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store" / "models").exists()


@pytest.mark.parametrize(
    ("config", "changed", "message"),
    [
        (GPTQ, {**GPTQ, "group_size": 16}, r"qzeros has shape \[1, 8\], config.json says \[2, 8\]"),
        (AWQ, {**AWQ, "group_size": -1}, r"qzeros has shape \[2, 4\], config.json says \[1, 4\]"),
        (
            PACKED,
            compressed_config("pack-quantized", bits=4, group_size=16),
            r"weight_scale has shape \[64, 1\], config.json says \[64, 2\]",
        ),
        (
            PACKED,
            compressed_config("pack-quantized", bits=8, group_size=32),
            r"weight_packed has shape \[64, 4\], config.json says \[64, 8\]",
        ),
    ],
)
def test_groups_and_widths_other_than_the_config_says(
    tmp_path: Path, config: Mapping[str, Any], changed: Mapping[str, Any], message: str
) -> None:
    checkpoint = quantised(tmp_path, config).stored
    configure(checkpoint, quantization_config=changed)
    with pytest.raises(CorruptData, match=message) as error:
        pack(tmp_path, checkpoint)
    assert error.value.reason == "TENSOR_SHAPE"


@pytest.mark.parametrize("config", [GPTQ, AWQ, PACKED])
def test_a_config_that_says_nothing_of_integers(tmp_path: Path, config: Mapping[str, Any]) -> None:
    checkpoint = quantised(tmp_path, config).stored
    configure(checkpoint, quantization_config=None)
    with pytest.raises(InvalidInput, match=r"unexpected tensor .* \(config.json has no quantization_config\)"):
        pack(tmp_path, checkpoint)


def test_what_is_of_activations_and_caches_is_left_out(tmp_path: Path) -> None:
    checkpoint = quantised(tmp_path, BYTES).stored
    tensors = read(checkpoint)
    extra = {f"{QUERY}.input_scale", "model.layers.0.self_attn.k_scale", f"{GATE}.weight_zero_point"}
    tensors |= {name: torch.ones(1) for name in extra}
    result = pack(tmp_path, write(checkpoint, tensors, BYTES))
    assert {name for name, _ in result.dropped} == extra


def test_biases_that_old_tools_give_every_layer_are_left_out_where_they_are_zero(tmp_path: Path) -> None:
    checkpoint = quantised(tmp_path, GPTQ).stored
    tensors = read(checkpoint)
    extra = {f"{module}.bias": torch.zeros(32, dtype=torch.bfloat16) for module in (GATE, QUERY)}
    result = pack(tmp_path, write(checkpoint, tensors | extra, GPTQ))
    assert {name for name, _ in result.dropped} == extra.keys()
    extra[f"{GATE}.bias"][5] = 1e-3
    with pytest.raises(InvalidInput, match=f"unexpected tensor {GATE}.bias, which is not zero"):
        pack(tmp_path, write(checkpoint, tensors | extra, GPTQ))


@pytest.mark.parametrize("family", ["granitemoe", "gpt_oss"])
def test_families_whose_experts_are_fused_have_no_integers(tmp_path: Path, family: str) -> None:
    checkpoint = quantised(tmp_path, PACKED, family, only="nothing").stored
    with pytest.raises(InvalidInput, match=f"{family} stores its experts fused, for which compressed-tensors"):
        pack(tmp_path, checkpoint)
