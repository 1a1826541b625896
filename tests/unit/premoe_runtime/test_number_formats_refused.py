"""Quantised checkpoints that cannot be right, or cannot be read here: one clear line, and nothing is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantised import FP8, Tensors, configure, fp8_checkpoint, mxfp4_checkpoint, read, write
from support.tiny import tiny_checkpoint, tiny_config

from premoe_runtime.families.registry import read_model
from premoe_runtime.formats.errors import CorruptData, InvalidInput, PremoeError
from premoe_runtime.numbers.registry import REFUSED
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

QUERY = "model.layers.0.self_attn.q_proj.weight"
GATE = "model.layers.1.mlp.experts.5.gate_proj.weight"
BLOCKS = "model.layers.1.mlp.experts.gate_up_proj_blocks"
SCALES = "model.layers.1.mlp.experts.gate_up_proj_scales"


def refused(folder: Path, checkpoint: Path, kind: type[PremoeError], message: str, reason: str) -> None:
    with pytest.raises(kind, match=message) as error:
        write_pack(open_source(str(checkpoint)), open_store((folder / "store").as_uri()))
    assert error.value.reason == reason
    assert "\n" not in str(error.value)
    assert not (folder / "store" / "models").exists()


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[name].view(-1)[-1:].fill_(value)


def cast(name: str, dtype: torch.dtype) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name].float().to(dtype)})


@pytest.mark.parametrize(
    ("spoil", "kind", "message", "reason"),
    [
        (drop(f"{GATE}_scale_inv"), CorruptData, rf"{GATE}_scale_inv is missing \(.*FP8", "TENSOR_MISSING"),
        (
            drop(f"{QUERY}_scale_inv"),
            InvalidInput,
            rf"{QUERY} has dtype F8_E4M3; .* \({QUERY}_scale_inv is missing\)",
            "DTYPE_UNSUPPORTED",
        ),
        (drop(QUERY), CorruptData, rf"{QUERY} is missing", "TENSOR_MISSING"),
        (cast(GATE, torch.bfloat16), InvalidInput, rf"{GATE} has dtype BF16; supported: F8_E4M3", "DTYPE_UNSUPPORTED"),
        (
            cast(QUERY, torch.bfloat16),
            InvalidInput,
            rf"{QUERY} has dtype BF16; supported: F8_E4M3",
            "DTYPE_UNSUPPORTED",
        ),
        (
            cast(f"{GATE}_scale_inv", torch.float16),
            InvalidInput,
            "dtype F16; supported: F32, BF16",
            "DTYPE_UNSUPPORTED",
        ),
        (cast(f"{GATE}_scale_inv", torch.bfloat16), InvalidInput, "experts of two dtypes", "DTYPE_UNSUPPORTED"),
        (put(f"{GATE}_scale_inv", float("nan")), CorruptData, rf"{GATE}_scale_inv holds .* NaN", "SCALES_INVALID"),
        (put(f"{GATE}_scale_inv", float("inf")), CorruptData, "a scale that is NaN or infinite", "SCALES_INVALID"),
        (put(f"{GATE}_scale_inv", 0.0), CorruptData, rf"{GATE}_scale_inv holds .* zero", "SCALES_INVALID"),
        (put(f"{QUERY}_scale_inv", float("nan")), CorruptData, rf"{QUERY}_scale_inv holds .* NaN", "SCALES_INVALID"),
        (
            lambda tensors: tensors.update({f"{GATE}_scale_inv": torch.ones(1, 1, 1)}),
            CorruptData,
            r"has shape \[1, 1, 1\], config.json says \[1, 1\]",
            "TENSOR_SHAPE",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.gate.weight_scale_inv": torch.ones(1, 1)}),
            InvalidInput,
            "unexpected tensor model.layers.0.mlp.gate.weight_scale_inv",
            "UNEXPECTED_TENSOR",
        ),
    ],
)
def test_fp8_tensors_that_cannot_be_right(
    tmp_path: Path, spoil: Callable[[Tensors], object], kind: type[PremoeError], message: str, reason: str
) -> None:
    checkpoint = fp8_checkpoint(tmp_path, "qwen3_moe")
    tensors = read(checkpoint)
    spoil(tensors)
    refused(tmp_path, write(checkpoint, tensors, FP8), kind, message, reason)


def test_scales_of_another_block_size(tmp_path: Path) -> None:
    checkpoint = fp8_checkpoint(tmp_path, "qwen3_moe", hidden_size=256)
    configure(checkpoint, quantization_config={**FP8, "weight_block_size": [64, 64]})
    refused(
        tmp_path, checkpoint, CorruptData, r"scale_inv has shape \[2, 1\], config.json says \[4, 1\]", "TENSOR_SHAPE"
    )


def test_a_config_that_says_fp8_of_plain_weights(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    configure(checkpoint, quantization_config=FP8)
    refused(tmp_path, checkpoint, InvalidInput, r"BF16; supported: F8_E4M3 \(config.json says FP8", "DTYPE_UNSUPPORTED")


def test_a_config_that_does_not_say_fp8(tmp_path: Path) -> None:
    checkpoint = fp8_checkpoint(tmp_path, "qwen3_moe")
    configure(checkpoint, quantization_config=None)
    message = r"F8_E4M3; supported: BF16, F16, F32 \(config.json has no quantization_config\)"
    refused(tmp_path, checkpoint, InvalidInput, message, "DTYPE_UNSUPPORTED")


@pytest.mark.parametrize(
    ("spoil", "kind", "message", "reason"),
    [
        (put(SCALES, 255), CorruptData, r"gate_up_proj_scales holds a scale that is NaN \(255\)", "SCALES_INVALID"),
        (drop(SCALES), CorruptData, rf"{SCALES} is missing \(.*MXFP4", "TENSOR_MISSING"),
        (
            lambda tensors: tensors.update({BLOCKS: tensors[BLOCKS].flatten(-2).contiguous()}),
            CorruptData,
            r"has shape \[16, 64, 32\], config.json says \[16, 64, 2, 16\]",
            "TENSOR_SHAPE",
        ),
        (cast(SCALES, torch.bfloat16), InvalidInput, "dtype BF16; supported: U8", "DTYPE_UNSUPPORTED"),
    ],
)
def test_mxfp4_tensors_that_cannot_be_right(
    tmp_path: Path, spoil: Callable[[Tensors], object], kind: type[PremoeError], message: str, reason: str
) -> None:
    checkpoint = mxfp4_checkpoint(tmp_path)
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = read(checkpoint)
    spoil(tensors)
    refused(tmp_path, write(checkpoint, tensors, config["quantization_config"]), kind, message, reason)


def said(family: str, quantization: object, **overrides: Any) -> None:
    values = tiny_config(family, **overrides).to_dict() | {"quantization_config": quantization}
    read_model(json.dumps(values).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_scheme": "static"}, "activation_scheme 'static' fixes the scales of activations"),
        ({"fmt": "e5m2"}, "fmt 'e5m2' is not e4m3"),
        ({"weight_block_size": None}, r"weight_block_size None is not \[rows, columns\]"),
        ({"weight_block_size": [128]}, r"is not \[rows, columns\]"),
        ({"weight_block_size": [128, 0]}, r"is not \[rows, columns\]"),
        ({"weight_block_size": [True, 128]}, r"is not \[rows, columns\]"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert is no list of names"),
        ({"modules_to_not_convert": ["model.layers.1.mlp"]}, "but not the experts of all layers"),
    ],
)
def test_settings_of_fp8_that_are_not_supported(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as error:
        said("qwen3_moe", {**FP8, **change})
    assert str(error.value).startswith("config.json: quantization_config")
    assert error.value.reason == "NUMBERS_UNSUPPORTED"


@pytest.mark.parametrize("method", [*sorted(REFUSED), "zip", None, 5])
def test_other_methods_are_refused_by_name(method: object) -> None:
    with pytest.raises(InvalidInput, match=rf"quantised by {method!r} cannot be packed: ") as error:
        said("qwen3_moe", {"quant_method": method})
    assert error.value.reason == "QUANTISED"
    if isinstance(method, str):
        assert REFUSED.get(method, "this method is not known") in str(error.value)


def test_families_whose_experts_are_stored_fused_have_no_fp8() -> None:
    with pytest.raises(InvalidInput, match="granitemoe stores its experts fused, for which FP8"):
        said("granitemoe", FP8)


def test_columns_that_are_no_groups_have_no_mxfp4() -> None:
    with pytest.raises(InvalidInput, match="down_proj has 48 columns, which are no groups of 32"):
        said("gpt_oss", {"quant_method": "mxfp4"}, intermediate_size=48)
