"""Every family, one row each: packed, loaded without experts, restricted, swapped, profiled and served.

Always against the family's unmodified stock class, masked from outside: bit for bit, on the CPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.engines import hf_bench, prompt
from support.family_rows import ROWS, Row
from support.oracle import check_equal, experts_of, masked_routers, random_kept, stock_logits
from support.profiles import write_examples
from support.sources import MemorySource
from support.tiny import tiny_checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.families import stock
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.offline.calibration import read_calibration
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.offline.profile.state import COUNTS
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.probing.prober import Prober
from premoe_runtime.probing.weights import load_probing_model
from premoe_runtime.residency.swap import bring
from premoe_runtime.storage import open_store

LAYERS, EXPERTS = 2, 16
each_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=("fp32", "bf16", "fp16")
)


def checkpoint_of(folder: Path, row: Row, dtype: torch.dtype) -> Path:
    return tiny_checkpoint(folder, row.family, dtype, **row.overrides)


def stock_model(checkpoint: Path, dtype: torch.dtype) -> PreTrainedModel:
    data = json.loads((checkpoint / "config.json").read_text())
    config = CONFIG_MAPPING[checkpoint.name].from_dict(data | {"model_type": checkpoint.name, "auto_map": {}})
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, config=config, dtype=dtype, experts_implementation="grouped_mm", trust_remote_code=False
    )
    return model.eval().requires_grad_(False)


def kept_of(row: Row, seed: int) -> torch.Tensor:
    """bool[L, E] of 8 experts a layer, two in each of four groups."""
    return random_kept(LAYERS, 4, 4, 2, seed).reshape(LAYERS, EXPERTS)


def test_every_family_has_a_row() -> None:
    assert {row.family for row in ROWS.values()} == FAMILIES.keys()


@each_row
@each_dtype
def test_a_packed_model_equals_the_masked_stock_model_before_and_after_a_swap(
    tmp_path: Path, row: Row, dtype: torch.dtype
) -> None:
    checkpoint = checkpoint_of(tmp_path / "checkpoint", row, dtype)
    source = open_pack(write_pack(open_source(str(checkpoint)), open_store((tmp_path / "store").as_uri())).url)
    slots = load_slot_model(source, slots=10)
    assert slots.manifest.layer_experts == (EXPERTS,) * LAYERS
    assert source.bytes_read <= slots.manifest.skeleton_bytes + len(slots.manifest.to_json())
    oracle, ids = stock_model(checkpoint, dtype), torch.tensor([prompt(24, seed) for seed in range(4)])
    for seed in (1, 2):
        kept = kept_of(row, seed)
        bring(slots.store, source, experts_of(kept), {0: kept.numpy()})
        slots.store.check_integrity()
        with masked_routers(oracle, FAMILIES[row.family], kept) as seen:
            expected = stock_logits(oracle, ids)
        assert len(seen.changed) == LAYERS
        assert seen.share_changed >= 0.3
        check_equal(stock_logits(slots.model, ids), expected)
    assert not torch.equal(expected, stock_logits(oracle, ids))


@each_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("fp32", "bf16"))
def test_with_every_expert_it_is_the_stock_model(tmp_path: Path, row: Row, dtype: torch.dtype) -> None:
    checkpoint = checkpoint_of(tmp_path, row, dtype)
    slots, oracle = load_slot_model(MemorySource(checkpoint), slots=EXPERTS), stock_model(checkpoint, dtype)
    everything = torch.ones(LAYERS, EXPERTS, dtype=torch.bool)
    bring(slots.store, slots.source, experts_of(everything), {0: everything.numpy()})
    ids = torch.tensor([prompt(24, seed) for seed in range(2)])
    assert torch.equal(stock_logits(slots.model, ids), stock_logits(oracle, ids))
    theirs = dict(oracle.named_parameters()) | dict(oracle.named_buffers())
    for name, tensor in (*slots.model.named_parameters(), *slots.model.named_buffers()):
        assert torch.equal(tensor.float(), theirs[name].float()), name


@each_row
def test_its_profile_counts_what_the_stock_routers_choose(tmp_path: Path, row: Row) -> None:
    checkpoint = checkpoint_of(tmp_path, row, torch.float32)
    model, oracle = load_full_model(MemorySource(checkpoint)), stock_model(checkpoint, torch.float32)
    examples = read_calibration(write_examples(tmp_path / "calibration.jsonl", "capitals", 6))
    profile = measure_profile(model, examples, task="capitals", max_tokens=128)
    assert profile.state[COUNTS].sum(-1).tolist() == [profile.tokens * model.manifest.top_k] * LAYERS
    asked = prompt(30)
    found = Prober(load_probing_model(model.source), model.manifest).signature(asked)
    spec, seen = FAMILIES[row.family], []
    first = stock.sparse_part(oracle, spec, model.manifest.layers[0].block)
    assert first is not None
    first.get_submodule(spec.router_module).register_forward_hook(
        lambda module, given, output: seen.append(
            output if spec.chooser else output[spec.router_returns.index("logits")]
        )
    )
    stock_logits(oracle, torch.tensor([asked]))
    mean = seen[0].float().softmax(-1).sqrt().mean(0)
    torch.testing.assert_close(torch.from_numpy(found), mean / mean.norm(), rtol=1e-4, atol=1e-5)


@each_row
def test_it_serves_what_the_masked_stock_model_generates(tmp_path: Path, row: Row) -> None:
    with hf_bench(
        tmp_path, family=row.family, overrides=dict(row.overrides), rows=2, kept_per_layer=row.kept, prefill_tokens=16
    ) as bench:
        top_k, router = bench.slot_model.manifest.top_k, bench.slot_model.manifest.router
        together = [
            bench.submit(prompt(9 + 12 * index, index), row=index, active=top_k, max_tokens=12) for index in range(2)
        ]
        assert (
            router.groups == 1 or int(bench.kept.reshape(-1, 4, 4).sum(-1).min()) >= 2
        )  # or the stock class drops a group
        served = [one.wait().tokens for one in together]
        oracle = stock_model(bench.folder, torch.float32)
        for index, tokens in enumerate(served):
            asked = torch.tensor([prompt(9 + 12 * index, index)])
            with masked_routers(oracle, FAMILIES[row.family], bench.kept[index]) as seen:
                whole = oracle.generate(
                    asked,
                    attention_mask=torch.ones_like(asked),
                    max_new_tokens=12,
                    do_sample=False,
                    # With a cache, Phi-MoE's class forgets all but the last token where longrope's factors change.
                    use_cache=not bench.slot_model.short_tokens,
                )
            assert seen.share_changed >= 0.3
            assert tokens == whole[0, asked.shape[1] :].tolist()
