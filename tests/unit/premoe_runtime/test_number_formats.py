"""Checkpoints in the number formats that they are shipped in: packed as they are, and run as transformers runs them.

Always against transformers' own dequantised model of the same folder, masked from outside: bit for bit, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from support.engines import Collector, Started, prompt
from support.oracle import check_equal, experts_of, masked_routers, random_kept, stock_logits
from support.profiles import write_examples
from support.quantised import FP8, configure, fp8_checkpoint, mxfp4_checkpoint, read, write
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config, PreTrainedModel

from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.families.registry import FAMILIES, read_model
from premoe_runtime.families.stored import as_configured
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import NumberSpec
from premoe_runtime.numbers.registry import numbers_of, told
from premoe_runtime.offline.calibration import read_calibration
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.offline.profile.state import COUNTS
from premoe_runtime.packs.layout import blob_layout
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.probing.prober import Prober
from premoe_runtime.probing.weights import load_probing_model
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.plan import STAGING_BYTES
from premoe_runtime.residency.swap import bring
from premoe_runtime.serving.front import Front
from premoe_runtime.serving.requests import KeptPattern, Request
from premoe_runtime.storage import open_store

LAYERS, EXPERTS = 2, 16
CONFIGS = Path(__file__).parents[2] / "fixtures" / "configs"
WIDE: dict[str, Any] = {"hidden_size": 256, "moe_intermediate_size": 128}


class Row(NamedTuple):
    """One shipped checkpoint: how it is made, what transformers dequantises it by, and its format in a manifest."""

    family: str
    checkpoint: Callable[[Path], Path]
    dequantised: Any
    spec: NumberSpec


ROWS = {
    "deepseek_v3 fp8": Row(
        "deepseek_v3",
        lambda folder: fp8_checkpoint(folder, "deepseek_v3", intermediate_size=256, **WIDE),
        FineGrainedFP8Config(dequantize=True),
        NumberSpec(method="fp8", block=(128, 128)),
    ),
    "qwen3_moe fp8": Row(
        "qwen3_moe",
        lambda folder: fp8_checkpoint(folder, "qwen3_moe", scales=torch.bfloat16, **WIDE),
        FineGrainedFP8Config(dequantize=True),
        NumberSpec(method="fp8", block=(128, 128)),
    ),
    "gpt_oss mxfp4": Row(
        "gpt_oss",
        lambda folder: mxfp4_checkpoint(folder, hidden_size=64, intermediate_size=96),
        Mxfp4Config(dequantize=True),
        NumberSpec(method="mxfp4", block=(1, 32)),
    ),
}
each_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float32, torch.float16], ids=("bf16", "fp32", "fp16")
)


@pytest.fixture(autouse=True)
def _unasked() -> Iterator[None]:
    """transformers wants accelerate for FP8, and uses none of it to dequantise on the CPU."""
    with mock.patch("transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available", return_value=True):
        yield


def dequantised(row: Row, checkpoint: Path, dtype: torch.dtype) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, quantization_config=row.dequantised, experts_implementation="grouped_mm"
    )
    for name, parameter in model.named_parameters():
        if ".experts." in name:  # transformers leaves what it makes of MXFP4 in bfloat16, whatever it is asked for
            parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)


def packed(checkpoint: Path, folder: Path) -> PackReader:
    return open_pack(write_pack(open_source(str(checkpoint)), open_store((folder / "store").as_uri())).url)


@each_row
def test_a_pack_holds_the_checkpoints_own_bytes(tmp_path: Path, row: Row) -> None:
    checkpoint = row.checkpoint(tmp_path)
    source = packed(checkpoint, tmp_path)
    assert verify_pack(source).faults == ()
    manifest, tensors = source.manifest(), read(checkpoint)
    assert (manifest.numbers, manifest.dtype) == (row.spec, "BF16")
    assert not {"gate_up", "down"} & {field.name for field in manifest.layout.fields}
    skeleton: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "store").rglob("skeleton/*.safetensors"):
        skeleton |= load_file(file)
    for name, tensor in skeleton.items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor.view(torch.uint8), tensors[name].view(torch.uint8)), name
    blob = bytearray(manifest.layout.blob_bytes)
    source.fetch([ExpertId(1, 3)], lambda expert: memoryview(blob), lambda expert, checked: None)
    prefix = f"model.layers.{manifest.layers[1].block}.mlp.experts"
    for field in manifest.layout.fields:
        stored = tensors.get(f"{prefix}.3.{field.name}")
        if stored is None and field.name.endswith("_bias"):
            continue  # straightened, as all biases are
        stored = tensors[f"{prefix}.{field.name}"][3] if stored is None else stored
        data = stored.contiguous().view(torch.uint8).numpy().tobytes()
        assert bytes(blob[field.offset : field.offset + field.num_bytes]) == data, field.name


@each_row
@each_dtype
def test_it_equals_the_masked_dequantised_model_before_and_after_a_swap(
    tmp_path: Path, row: Row, dtype: torch.dtype
) -> None:
    checkpoint = row.checkpoint(tmp_path)
    source = packed(checkpoint, tmp_path)
    slots = load_slot_model(source, slots=10, dtype=dtype)
    oracle, ids = dequantised(row, checkpoint, dtype), torch.tensor([prompt(24, seed) for seed in range(4)])
    theirs = dict(oracle.named_parameters()) | dict(oracle.named_buffers())
    for name, tensor in (*slots.model.named_parameters(), *slots.model.named_buffers()):
        assert torch.equal(tensor.float(), theirs[name].float()), name
    for seed in (1, 2):
        kept = random_kept(LAYERS, 4, 4, 2, seed).reshape(LAYERS, EXPERTS)
        bring(slots.store, source, experts_of(kept), {0: kept.numpy()})
        slots.store.check_integrity()
        with masked_routers(oracle, FAMILIES[row.family], kept) as seen:
            expected = stock_logits(oracle, ids)
        assert seen.share_changed >= 0.3
        check_equal(stock_logits(slots.model, ids), expected)


@each_row
def test_its_profile_and_its_probe_are_those_of_the_dequantised_model(tmp_path: Path, row: Row) -> None:
    checkpoint = row.checkpoint(tmp_path)
    model = load_full_model(packed(checkpoint, tmp_path))
    examples = read_calibration(write_examples(tmp_path / "calibration.jsonl", "capitals", 6))
    profile = measure_profile(model, examples, task="capitals", max_tokens=128)
    plain = write(checkpoint, dict(dequantised(row, checkpoint, torch.float32).state_dict()), None)
    expected = load_full_model(packed(plain, tmp_path / "other"))
    assert expected.manifest.numbers is None
    assert measure_profile(expected, examples, task="capitals", max_tokens=128).state[COUNTS].tolist() == (
        profile.state[COUNTS].tolist()
    )
    probes = [
        Prober(load_probing_model(one.source, dtype=torch.float32), one.manifest).signature(prompt(30)).tolist()
        for one in (model, expected)
    ]
    assert probes[0] == probes[1]


@each_row
def test_it_serves_what_the_masked_dequantised_model_generates_and_says_so(
    tmp_path: Path, row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = row.checkpoint(tmp_path)
    source = packed(checkpoint, tmp_path)
    with caplog.at_level("INFO", logger="premoe_runtime.engines.hf.model"):
        slots = load_slot_model(source, slots=13, dtype=torch.float32)
    stored, held = source.manifest().layout.blob_bytes, slots.store.shape.blob_bytes
    title = numbers_of(row.spec).title
    (line,) = [one.getMessage() for one in caplog.records if one.name == "premoe_runtime.engines.hf.model"]
    assert line == (
        f"weights are stored as {title} and dequantised to float32 on arrival: an expert's {stored} bytes become {held}"
    )
    assert held > stored
    assert told(source.manifest()) == f"{title}, dequantised to BF16"
    kept, asked = random_kept(LAYERS, 4, 4, 3, 7).reshape(LAYERS, EXPERTS), prompt(20)
    arena = HostArena(slots.store.shape.blob_bytes, STAGING_BYTES)
    front = Front(HfEngine(slots, arena), slots.store.shape, arena, source, retry_seconds=())
    with closing(front):
        answer = Collector()
        pattern = KeptPattern("specialist", kept.numpy())
        request = Request("one", pattern, source.manifest().top_k, tuple(asked), SamplingParams(max_tokens=8))
        front.generate(request, Started(answer), answer)
        tokens = answer.wait().tokens
    oracle, given = dequantised(row, checkpoint, torch.float32), torch.tensor([asked])
    with masked_routers(oracle, FAMILIES[row.family], kept):
        whole = oracle.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False)
    assert tokens == whole[0, len(asked) :].tolist()


def test_blocks_that_a_weight_does_not_fill_are_cut_off() -> None:
    """DeepSeek's kv_a_proj_with_mqa has 576 rows: four blocks and a half, which transformers 5.19 does not read."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(9, 10, generator=random).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 3, generator=random) + 0.5
    made = numbers_of(NumberSpec(method="fp8", block=(4, 4))).dequantise([weight, scales], torch.bfloat16)
    for row in range(9):
        for column in range(10):
            value = weight[row, column].float() * scales[row // 4, column // 4]
            assert made[row, column] == value.to(torch.bfloat16)


def test_blocks_of_multi_token_prediction_are_left_out_with_their_scales(tmp_path: Path) -> None:
    checkpoint = ROWS["deepseek_v3 fp8"].checkpoint(tmp_path)
    tensors = read(checkpoint)
    extra = {
        name.replace(".layers.2.", ".layers.3."): one.clone() for name, one in tensors.items() if ".layers.2." in name
    }
    whole = write_pack(open_source(str(checkpoint)), open_store((tmp_path / "store").as_uri())).manifest
    configure(write(checkpoint, tensors | extra, FP8), num_nextn_predict_layers=1)
    result = write_pack(open_source(str(checkpoint)), open_store((tmp_path / "store").as_uri()))
    assert result.manifest.weights_id == whole.weights_id
    assert {name for name, why in result.dropped if why == "multi-token prediction"} == extra.keys()


def test_deepseek_r1_as_its_config_says_it() -> None:
    """Its own config.json, whose code the stock class replaces; figures are those of its files."""
    model = as_configured(read_model((CONFIGS / "deepseek-r1.json").read_bytes()))
    assert (len(model.blocks), model.num_experts, model.stated_dtype) == (58, 256, "BF16")
    layout = blob_layout(model, "BF16")
    assert [(field.name, field.dtype, field.shape) for field in layout.fields[:2]] == [
        ("gate_proj.weight", "F8_E4M3", (2048, 7168)),
        ("gate_proj.weight_scale_inv", "F32", (16, 56)),
    ]
    assert layout.blob_bytes == 3 * (2048 * 7168 + 16 * 56 * 4) + 1536  # to a multiple of 4096
    attention = "model.layers.0.self_attn."
    assert model.skeleton[f"{attention}kv_a_proj_with_mqa.weight_scale_inv"].shape == (5, 56)
    assert model.skeleton[f"{attention}kv_a_proj_with_mqa.weight"].dtypes == ("F8_E4M3",)
    assert f"{attention}kv_a_layernorm.weight_scale_inv" not in model.skeleton
    plain = {"lm_head.weight", "model.embed_tokens.weight", "model.layers.3.mlp.gate.weight"}
    assert not any(model.skeleton[name].dtypes for name in plain)
