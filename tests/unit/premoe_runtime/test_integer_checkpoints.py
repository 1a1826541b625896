"""Checkpoints with integer weights, one row each: packed as they are, loaded, swapped, profiled and served.

Always against the unmodified stock class with the weights that the integers stand for, masked from outside, bit for
bit. For what transformers can dequantise itself, its model is that one too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.engines import EXPERTS, LAYERS, Collector, Started, prompt
from support.integers import LINEAR, Quantised, compressed_config, quantised
from support.oracle import experts_of, masked_routers, random_kept, stock_logits
from support.profiles import write_examples
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.offline.calibration import read_calibration
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.offline.profile.state import COUNTS
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.plan import STAGING_BYTES
from premoe_runtime.residency.swap import bring
from premoe_runtime.serving.front import Front
from premoe_runtime.serving.requests import KeptPattern, Request
from premoe_runtime.storage import open_store


class Case(NamedTuple):
    """One kind of checkpoint; ``only``: names of the modules that are quantised."""

    config: Mapping[str, Any]
    dtype: torch.dtype = torch.bfloat16
    family: str = "qwen3_moe"
    only: str = LINEAR


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "lm_head": False}
CASES: Mapping[str, Case] = {
    "gptq 4": Case({**GPTQ, "checkpoint_format": "gptq"}, torch.float16),
    "gptq 8, by importance, asymmetric, with its head": Case(
        {
            **GPTQ,
            "bits": 8,
            "sym": False,
            "desc_act": True,
            "checkpoint_format": "gptq",
            "group_size": -1,
            "lm_head": True,
        },
        only=rf"{LINEAR}|lm_head",
    ),
    "gptq 4, second version, by importance, asymmetric": Case(
        {**GPTQ, "sym": False, "desc_act": True, "checkpoint_format": "gptq_v2"}, torch.float16
    ),
    "awq": Case(
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 32,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["gate"],
        },
        torch.float16,
    ),
    "compressed int4": Case(compressed_config("pack-quantized", bits=4, group_size=32)),
    "compressed int4, asymmetric": Case(
        compressed_config("pack-quantized", bits=4, group_size=32, symmetric=False), torch.float16
    ),
    "compressed int4, by importance": Case(
        compressed_config("pack-quantized", bits=4, group_size=32, actorder="group")
    ),
    "compressed int8, deepseek with its shared experts": Case(
        compressed_config("pack-quantized", bits=8, group_size=None),
        family="deepseek_v3",
        only=rf"{LINEAR}|.*kv_a_proj_with_mqa",
    ),
    "compressed int8, mixtral": Case(
        compressed_config("int-quantized", bits=8, group_size=None, ignore=("re:.*block_sparse_moe.gate",)),
        family="mixtral",
    ),
    "compressed int4, deepseek like kimi": Case(
        compressed_config(
            "pack-quantized",
            bits=4,
            group_size=32,
            ignore=("re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"),
        ),
        family="deepseek_v3",
        only=r".*\.experts\.\d+\..*_proj",
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def written(folder: Path, case: Case) -> Quantised:
    return quantised(folder, case.config, case.family, case.dtype, case.only)


def packed(folder: Path, checkpoint: Path) -> PackReader:
    return open_pack(write_pack(open_source(str(checkpoint)), open_store((folder / "store").as_uri())).url)


def stock_model(checkpoint: Path, **options: Any) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, experts_implementation="grouped_mm", **options)
    return model.eval().requires_grad_(False)


def kept_of(seed: int) -> torch.Tensor:
    """bool[L, E] of 8 experts a layer, two in each of four groups."""
    return random_kept(LAYERS, 4, 4, 2, seed).reshape(LAYERS, EXPERTS)


@each_case
def test_it_is_packed_as_it_is_and_computes_what_the_dequantised_stock_model_does(tmp_path: Path, case: Case) -> None:
    checkpoint = written(tmp_path, case)
    source = packed(tmp_path, checkpoint.stored)
    assert not verify_pack(source).faults
    slots = load_slot_model(source, slots=10)
    oracle, ids = stock_model(checkpoint.plain, dtype=case.dtype), torch.tensor([prompt(24, seed) for seed in range(2)])
    for seed in (1, 2):
        kept = kept_of(seed)
        bring(slots.store, source, experts_of(kept), {0: kept.numpy()})
        slots.store.check_integrity()
        with masked_routers(oracle, FAMILIES[case.family], kept) as seen:
            expected = stock_logits(oracle, ids)
        assert seen.share_changed >= 0.3
        assert torch.equal(stock_logits(slots.model, ids), expected)
    whole = dict(oracle.named_parameters())
    for name, tensor in slots.model.named_parameters():
        assert torch.equal(tensor, whole[name]), name


@each_case
def test_it_is_profiled_and_served(tmp_path: Path, case: Case) -> None:
    checkpoint = written(tmp_path, case)
    source = packed(tmp_path, checkpoint.stored)
    examples = read_calibration(write_examples(tmp_path / "calibration.jsonl", "capitals", 4))
    profile = measure_profile(load_full_model(source), examples, task="capitals", max_tokens=64)
    assert profile.state[COUNTS].sum(-1).tolist() == [profile.tokens * source.manifest().top_k] * LAYERS
    slots, kept, asked = load_slot_model(source, slots=8), kept_of(3), prompt(20)
    arena = HostArena(slots.store.shape.blob_bytes, STAGING_BYTES)
    front = Front(HfEngine(slots, arena), slots.store.shape, arena, source, retry_seconds=())
    with closing(front):
        answer = Collector()
        pattern = KeptPattern("specialist", kept.numpy())
        request = Request("one", pattern, source.manifest().top_k, tuple(asked), SamplingParams(max_tokens=8))
        front.generate(request, Started(answer), answer)
        tokens = answer.wait().tokens
    oracle, given = stock_model(checkpoint.plain, dtype=case.dtype), torch.tensor([asked])
    with masked_routers(oracle, FAMILIES[case.family], kept):
        whole = oracle.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False)
    assert tokens == whole[0, len(asked) :].tolist()


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(
    "case",
    [
        "compressed int4",
        "compressed int8, deepseek with its shared experts",
        "compressed int4, deepseek like kimi",
    ],
)
def test_transformers_dequantises_it_to_the_same_weights(tmp_path: Path, case: str) -> None:
    checkpoint = written(tmp_path, CASES[case])
    theirs = stock_model(checkpoint.stored, quantization_config=CompressedTensorsConfig(dequantize=True))
    ours = dict(stock_model(checkpoint.plain).named_parameters())
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs.get_parameter(name)), name
