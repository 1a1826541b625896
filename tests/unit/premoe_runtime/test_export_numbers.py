"""Quantised checkpoints, cut: stored tensors are the originals' bytes, and transformers dequantises what is left."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.exports import PROMPTS, pack_of, random_pattern, restricted_logits
from support.integers import compressed_config, quantised
from support.oracle import stock_logits
from support.quantised import fp8_checkpoint, mxfp4_checkpoint, read
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

from premoe_runtime.formats.budget import Budget
from premoe_runtime.offline.export.cut import cut, kept_by, usual_spread
from premoe_runtime.offline.export.writer import export
from premoe_runtime.packs.verify import verify_pack

WIDE: dict[str, Any] = {"hidden_size": 256, "moe_intermediate_size": 128}
CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], Any]] = {
    "fp8": (
        lambda folder: fp8_checkpoint(folder, "deepseek_v3", intermediate_size=256, **WIDE),
        FineGrainedFP8Config(dequantize=True),
    ),
    "mxfp4": (
        lambda folder: mxfp4_checkpoint(folder, hidden_size=64, intermediate_size=96),
        Mxfp4Config(dequantize=True),
    ),
    "compressed-tensors int4": (
        lambda folder: quantised(folder, compressed_config("pack-quantized", bits=4, group_size=32)).stored,
        CompressedTensorsConfig(dequantize=True),
    ),
}


@pytest.fixture(autouse=True)
def _unasked() -> Iterator[None]:
    """transformers wants accelerate for FP8, and uses none of it to dequantise on the CPU."""
    with mock.patch("transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available", return_value=True):
        yield


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("numbers", CHECKPOINTS)
def test_a_quantised_checkpoint_is_cut_without_touching_its_numbers(tmp_path: Path, numbers: str) -> None:
    make, dequantise = CHECKPOINTS[numbers]
    checkpoint, folder = make(tmp_path), tmp_path / "cut"
    source = pack_of(checkpoint, tmp_path / "store")
    manifest = source.manifest()
    pattern, spread = random_pattern(manifest), usual_spread(manifest.router)
    chosen = cut(
        pattern,
        kept_by(pattern, Budget(4, 8), spread, manifest),
        manifest,
        active=4,
        spread=spread,
        target="transformers",
    )
    export(source, chosen, str(folder))
    before, after = read(checkpoint), read(folder)
    for name, tensor in after.items():
        assert torch.equal(tensor.view(torch.uint8), _original(name, before, chosen.experts).view(torch.uint8)), name
    configs = [json.loads((place / "config.json").read_text()) for place in (checkpoint, folder)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    again = pack_of(folder, tmp_path / "again")
    assert verify_pack(again).faults == ()
    assert again.manifest().numbers == manifest.numbers
    expected = restricted_logits(source, chosen.kept, 4)
    assert torch.equal(restricted_logits(again, again.manifest().exists, 4), expected)
    stock = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=dequantise, experts_implementation="grouped_mm"
    )
    torch.testing.assert_close(stock_logits(stock.eval(), PROMPTS), expected, rtol=0.02, atol=0.02)


def _original(name: str, before: dict[str, torch.Tensor], experts: Callable[[int], tuple[int, ...]]) -> torch.Tensor:
    """What a tensor of the cut checkpoint was cut from."""
    block = re.match(r"model\.layers\.(\d+)\.mlp\.", name)
    first = 1 if "model.layers.0.mlp.gate_proj.weight" in before else 0  # DeepSeek's first block is dense
    if block is None or int(block[1]) < first:
        return before[name]
    kept = experts(int(block[1]) - first)
    if one := re.match(r"(.*\.experts\.)(\d+)(\..*)", name):
        return before[f"{one[1]}{kept[int(one[2])]}{one[3]}"]
    if ".experts." in name or re.search(r"\.(gate|router)\.", name):
        return before[name][list(kept)].contiguous()
    return before[name]
