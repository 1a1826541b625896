"""The slot model against the unmodified stock class masked from outside: logits equal bit for bit, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.oracle import experts_of, masked_selection, random_kept, sliced_router, stock_logits
from support.sources import MemorySource
from support.tiny import FAMILIES, Family, prune, pruned_model, tiny_checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from premoe_runtime.engines.hf.model import SlotModel, load_slot_model
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.residency.swap import bring

LAYERS, EXPERTS = 2, 16
ONE_ROW = torch.zeros(1, dtype=torch.int64)
"""Every token under row 0, whatever their number."""
OLD_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("fp32", "bf16"))


def pair(
    folder: Path, family: Family, dtype: torch.dtype, slots: int, **overrides: Any
) -> tuple[PreTrainedModel, SlotModel]:
    """The stock model and the slot model of one random checkpoint, both on the grouped_mm path."""
    checkpoint = tiny_checkpoint(folder, family, dtype, **overrides)
    stock = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation="sdpa", experts_implementation="grouped_mm"
    )
    # Whether weights want gradients decides how torch folds some products: both sides must be equal in that too.
    return stock.eval().requires_grad_(False), load_slot_model(MemorySource(checkpoint), slots=slots)


def uneven_pair(
    folder: Path, family: Family, dtype: torch.dtype, layer_experts: tuple[int, ...], slots: int, **overrides: Any
) -> tuple[PreTrainedModel, SlotModel]:
    """The same of a checkpoint whose layers were pruned to different numbers of experts."""
    stock, _ = pair(folder, family, dtype, 2, **overrides)
    checkpoint = prune(folder / family, layer_experts)
    return pruned_model(stock, family, layer_experts, **overrides), load_slot_model(
        MemorySource(checkpoint), slots=slots
    )


def narrow_twin(
    folder: Path, stock: PreTrainedModel, family: Family, top_k: int, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The same weights in a stock model that uses ``top_k`` experts a token."""
    twin, _ = pair(folder, family, dtype, 2, num_experts_per_tok=top_k)
    twin.load_state_dict(stock.state_dict())
    return twin


def slot_logits(slot_model: SlotModel, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return stock_logits(slot_model.model, ids, **kwargs)


def prompts(batch: int = 4, length: int = 24, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


@each_family
@each_dtype
def test_all_experts_in_shuffled_slots_equal_the_stock_model(
    tmp_path: Path, family: Family, dtype: torch.dtype
) -> None:
    stock, slots = pair(tmp_path, family, dtype, EXPERTS)
    everything = torch.ones(LAYERS, EXPERTS, dtype=torch.bool)
    # Arriving in two lots, the later experts lie in lower slots.
    bring(slots.store, slots.source, frozenset(e for e in experts_of(everything) if e.expert % 3 == 2))
    bring(slots.store, slots.source, experts_of(everything), {0: everything})
    assert slots.store.slot_table()[0] != list(range(EXPERTS))
    assert torch.equal(slot_logits(slots, prompts()), stock_logits(stock, prompts()))


@each_family
@each_dtype
@pytest.mark.parametrize("norm", [True, False])
def test_restricted_router_equals_the_masked_stock_model(
    tmp_path: Path, family: Family, dtype: torch.dtype, norm: bool
) -> None:
    overrides = {} if family == "mixtral" else {"norm_topk_prob": norm}
    stock, slots = pair(tmp_path, family, dtype, 10, **overrides)
    kept = random_kept(1, LAYERS, EXPERTS, 7)
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0]})
    with masked_selection(kept, ONE_ROW) as seen:
        expected = stock_logits(stock, prompts())
    assert seen.share_changed >= 0.3
    assert len(seen.changed) == LAYERS
    assert torch.equal(slot_logits(slots, prompts()), expected)
    assert not torch.equal(expected, stock_logits(stock, prompts()))


@each_family
@each_dtype
def test_swaps_into_other_slots_change_nothing(tmp_path: Path, family: Family, dtype: torch.dtype) -> None:
    stock, slots = pair(tmp_path, family, dtype, 8)
    patterns = random_kept(3, LAYERS, EXPERTS, 6, seed=5)
    tables = []
    for turn in (0, 1, 2, 0):
        kept = patterns[turn : turn + 1]
        bring(slots.store, slots.source, experts_of(kept), {0: kept[0]})
        slots.store.check_integrity()
        tables.append({expert: slot for layer in slots.store.slot_table()[:1] for slot, expert in enumerate(layer)})
        with masked_selection(kept, ONE_ROW) as seen:
            expected = stock_logits(stock, prompts())
        assert seen.share_changed >= 0.3
        assert torch.equal(slot_logits(slots, prompts()), expected)
    # The first pattern came back, but not every expert lies where it lay.
    in_first = [expert for layer, expert in experts_of(patterns[0]) if layer == 0]
    assert [tables[0][e] for e in in_first] != [tables[-1][e] for e in in_first]


@each_family
@each_dtype
def test_different_patterns_in_one_batch(tmp_path: Path, family: Family, dtype: torch.dtype) -> None:
    stock, slots = pair(tmp_path, family, dtype, 14)
    patterns = random_kept(3, LAYERS, EXPERTS, 5, seed=2)
    bring(slots.store, slots.source, experts_of(patterns), {row: patterns[row] for row in range(3)})
    ids = prompts(batch=6)
    rows = torch.tensor([0, 1, 2, 1, 0, 2]).repeat_interleave(ids.shape[1])
    with masked_selection(patterns, rows) as seen:
        expected = stock_logits(stock, ids)
    assert seen.share_changed >= 0.3
    slots.steps(rows.tolist())
    assert torch.equal(slot_logits(slots, ids), expected)


def test_rows_may_differ_from_token_to_token(tmp_path: Path) -> None:
    stock, slots = pair(tmp_path, "olmoe", torch.float32, 14)
    patterns = random_kept(2, LAYERS, EXPERTS, 6, seed=8)
    bring(slots.store, slots.source, experts_of(patterns), {row: patterns[row] for row in range(2)})
    rows = torch.randint(0, 2, (prompts().numel(),), generator=torch.Generator().manual_seed(1))
    with masked_selection(patterns, rows) as seen:
        expected = stock_logits(stock, prompts())
    assert seen.share_changed >= 0.3
    slots.steps(rows.tolist())
    assert torch.equal(slot_logits(slots, prompts()), expected)


@each_family
@each_dtype
def test_slice_semantics_equal_the_stock_model_without_the_rows(
    tmp_path: Path, family: Family, dtype: torch.dtype
) -> None:
    stock, slots = pair(tmp_path, family, dtype, 9)
    kept = random_kept(1, LAYERS, EXPERTS, 7, seed=4)
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0]}, semantics="slice")
    with sliced_router(kept, ONE_ROW) as seen:
        expected = stock_logits(stock, prompts())
    assert seen.share_changed >= 0.3
    assert torch.equal(slot_logits(slots, prompts()), expected)


def test_the_two_semantics_differ_without_renormalisation_only(tmp_path: Path) -> None:
    kept = random_kept(1, LAYERS, EXPERTS, 7, seed=4)[0]
    found = {}
    for norm in (True, False):
        _, slots = pair(tmp_path / str(norm), "olmoe", torch.float32, 9, norm_topk_prob=norm)
        bring(slots.store, slots.source, experts_of(kept), {0: kept})
        slots.store.set_row(1, kept, semantics="slice")
        ids = prompts(batch=1).repeat(2, 1)
        slots.steps([0] * ids.shape[1] + [1] * ids.shape[1])
        selection, sliced = slot_logits(slots, ids)
        found[norm] = float((selection - sliced).abs().max())
    assert found[True] < 1e-4
    assert found[False] > 0.05


@each_family
@each_dtype
@pytest.mark.parametrize("width", [1, 5, 6, 7])
def test_fewer_active_experts_equal_a_stock_model_with_that_top_k(
    tmp_path: Path, family: Family, dtype: torch.dtype, width: int
) -> None:
    stock, slots = pair(tmp_path, family, dtype, 12, num_experts_per_tok=8)
    narrow = narrow_twin(tmp_path / "narrow", stock, family, width, dtype)
    kept = random_kept(1, LAYERS, EXPERTS, 9)
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0]})
    with masked_selection(kept, ONE_ROW) as seen:
        expected = stock_logits(narrow, prompts())
    assert seen.share_changed >= 0.3
    slots.steps(0, width)
    assert torch.equal(slot_logits(slots, prompts()), expected)


@each_family
@pytest.mark.parametrize("count", [3, 6])
def test_fewer_kept_experts_than_top_k(tmp_path: Path, family: Family, count: int) -> None:
    stock, slots = pair(tmp_path, family, torch.float32, 8, num_experts_per_tok=8)
    narrow = narrow_twin(tmp_path / "narrow", stock, family, count)
    kept = random_kept(1, LAYERS, EXPERTS, count)
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0]})
    with masked_selection(kept, ONE_ROW):
        expected = stock_logits(narrow, prompts())
    assert torch.equal(slot_logits(slots, prompts()), expected)


def test_width_and_row_may_differ_within_a_batch(tmp_path: Path) -> None:
    stock, slots = pair(tmp_path, "qwen3_moe", torch.float32, 14)
    patterns = random_kept(2, LAYERS, EXPERTS, 6, seed=8)
    bring(slots.store, slots.source, experts_of(patterns), {row: patterns[row] for row in range(2)})
    ids = prompts(batch=2)
    rows, active = (torch.tensor(v).repeat_interleave(ids.shape[1]) for v in ([0, 1], [2, 4]))
    slots.steps(rows.tolist(), active.tolist())
    together = slot_logits(slots, ids)
    for index, width in enumerate((2, 4)):
        alone = narrow_twin(tmp_path / str(width), stock, "qwen3_moe", width)
        with masked_selection(patterns[index : index + 1], ONE_ROW):
            expected = stock_logits(alone, ids[index : index + 1])
        # Another batch shape may run other kernels: equal up to rounding only.
        torch.testing.assert_close(together[index : index + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "drop", "change"),
    [
        (
            "qwen3_moe",
            ("rope_parameters",),
            {
                "rope_theta": 1e4,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            },
        ),
        ("qwen3_moe", (), {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}),
        ("qwen3_moe", (), {"sliding_window": 8, "use_sliding_window": False}),
        ("qwen2_moe", (), {"sliding_window": 8, "use_sliding_window": True, "num_local_experts": 99}),
        ("mixtral", (), {"sliding_window": 8}),
        ("olmoe", (), {"clip_qkv": 0.5, "moe_intermediate_size": 7}),
    ],
)
def test_keys_of_the_config_mean_what_the_stock_class_makes_of_them(
    tmp_path: Path, family: Family, drop: tuple[str, ...], change: dict[str, Any]
) -> None:
    checkpoint = tiny_checkpoint(tmp_path, family)
    path = checkpoint / "config.json"
    fields = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop}
    path.write_text(json.dumps(fields | change))
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, experts_implementation="grouped_mm")
    slots = load_slot_model(MemorySource(checkpoint), slots=EXPERTS)
    everything = torch.ones(LAYERS, EXPERTS, dtype=torch.bool)
    bring(slots.store, slots.source, experts_of(everything), {0: everything})
    expected = stock_logits(stock.eval().requires_grad_(False), prompts())
    assert torch.equal(slot_logits(slots, prompts()), expected)


def test_dense_blocks_are_counted_over(tmp_path: Path) -> None:
    stock, slots = pair(tmp_path, "qwen3_moe", torch.float32, 8, num_hidden_layers=4, mlp_only_layers=[0, 2])
    assert [layer.block for layer in slots.manifest.layers] == [1, 3]
    kept = random_kept(1, LAYERS, EXPERTS, 7)
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0]})
    with masked_selection(kept, ONE_ROW) as seen:
        expected = stock_logits(stock, prompts())
    assert seen.share_changed >= 0.3
    assert torch.equal(slot_logits(slots, prompts()), expected)


@each_family
def test_greedy_decoding_with_a_cache_and_left_padding(tmp_path: Path, family: Family) -> None:
    stock, slots = pair(tmp_path, family, torch.float32, 8)
    kept = random_kept(1, LAYERS, EXPERTS, 7)
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0]})
    ids, attention = prompts(batch=2, length=9), torch.ones(2, 9, dtype=torch.int64)
    attention[0, :4] = 0
    settings: dict[str, Any] = {
        "attention_mask": attention,
        "max_new_tokens": 12,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "eos_token_id": None,
    }
    with masked_selection(kept, ONE_ROW) as seen:
        expected = stock.generate(ids, **settings)
    assert seen.share_changed >= 0.3
    found = slots.model.generate(ids, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))


def test_fp32_from_a_bf16_pack_equals_the_stock_model_loaded_as_fp32(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "mixtral", torch.bfloat16)
    stock = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="sdpa", experts_implementation="grouped_mm"
    )
    slots = load_slot_model(MemorySource(checkpoint), slots=8, dtype=torch.float32)
    kept = random_kept(1, LAYERS, EXPERTS, 7)
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0]})
    slots.store.check_integrity()
    with masked_selection(kept, ONE_ROW) as seen:
        expected = stock_logits(stock.eval(), prompts())
    assert seen.share_changed >= 0.3
    assert torch.equal(slot_logits(slots, prompts()), expected)


def test_retired_experts_are_never_chosen(tmp_path: Path) -> None:
    """Between retire and publish a row loses its victims: what is left answers as the mask without them."""
    stock, slots = pair(tmp_path, "olmoe", torch.float32, 8)
    kept = random_kept(1, LAYERS, EXPERTS, 8)
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0]})
    newcomer = frozenset({ExpertId(0, int((~kept[0, 0]).nonzero()[0]))})
    ledger = Ledger(slots.store.slots, (EXPERTS,) * LAYERS, slots.store.slot_table())
    plan = ledger.plan(newcomer)
    victim = plan[0].evicts
    assert victim is not None
    slots.store.retire([victim])
    left = kept.clone()
    left[0, victim.layer, victim.expert] = False
    slots.store.arenas[0].slot(plan[0].slot).fill_(255)  # half-written bytes: NaN in every dtype
    with masked_selection(left, ONE_ROW):
        expected = stock_logits(stock, prompts())
    assert torch.equal(slot_logits(slots, prompts()), expected)


UNEVEN = pytest.mark.parametrize("layer_experts", [(9, 16), (5, 7)], ids=str)


def random_of(rows: int, layer_experts: tuple[int, ...], count: int, seed: int = 0) -> torch.Tensor:
    """bool[rows, L, E]: ``count`` experts of every layer, or all it has."""
    kept = torch.zeros(rows, len(layer_experts), max(layer_experts), dtype=torch.bool)
    for layer, experts in enumerate(layer_experts):
        kept[:, layer, :experts] = random_kept(rows, 1, experts, count, seed + layer)[:, 0]
    return kept


@each_family
@each_dtype
@UNEVEN
def test_uneven_layers_equal_a_stock_model_of_such_layers(
    tmp_path: Path, family: Family, dtype: torch.dtype, layer_experts: tuple[int, ...]
) -> None:
    stock, slots = uneven_pair(tmp_path, family, dtype, layer_experts, EXPERTS)
    everything = torch.from_numpy(slots.manifest.exists)
    assert slots.store.slots == slots.manifest.layer_experts == layer_experts
    bring(slots.store, slots.source, experts_of(everything), {0: everything})
    assert torch.equal(slot_logits(slots, prompts()), stock_logits(stock, prompts()))
    slots.store.check_integrity()


@each_family
@each_dtype
@UNEVEN
@pytest.mark.parametrize("semantics", ["selection", "slice"])
def test_uneven_layers_are_restricted_like_a_stock_model_of_such_layers(
    tmp_path: Path, family: Family, dtype: torch.dtype, layer_experts: tuple[int, ...], semantics: Any
) -> None:
    stock, slots = uneven_pair(tmp_path, family, dtype, layer_experts, 14)
    kept = random_of(2, layer_experts, 5)
    kept[1] = random_of(1, layer_experts, 8, seed=9)[0]  # all experts of some layers
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0], 1: kept[1]}, semantics=semantics)
    ids = prompts()
    rows = torch.tensor([0, 1, 1, 0]).repeat_interleave(ids.shape[1])
    slots.steps(rows.tolist())
    with (masked_selection if semantics == "selection" else sliced_router)(kept, rows) as seen:
        expected = stock_logits(stock, ids)
    assert seen.share_changed >= 0.05
    assert len(seen.changed) == LAYERS
    assert torch.equal(slot_logits(slots, ids), expected)


@each_family
def test_uneven_layers_equal_the_whole_model_with_what_is_missing_masked(tmp_path: Path, family: Family) -> None:
    stock, _ = pair(tmp_path / "whole", family, torch.float32, 2)
    _, slots = uneven_pair(tmp_path / "pruned", family, torch.float32, (9, 16), EXPERTS)
    exists = torch.from_numpy(slots.manifest.exists)
    bring(slots.store, slots.source, experts_of(exists), {0: exists})
    with sliced_router(exists[None], ONE_ROW) as seen:
        expected = stock_logits(stock, prompts())
    assert seen.share_changed >= 0.2
    # Softmax over 9 logits and over 16 of which 7 are -inf may add up in another order.
    torch.testing.assert_close(slot_logits(slots, prompts()), expected, rtol=1e-4, atol=1e-4)


def test_ranks_beyond_what_a_row_keeps_name_no_expert_in_a_short_layer(tmp_path: Path) -> None:
    stock, slots = uneven_pair(tmp_path, "olmoe", torch.float32, (6, 16), 16)
    kept = random_of(2, (6, 16), 9)
    kept[0, 0] = torch.arange(16) % 3 == 1  # experts 1 and 4 for the 4 ranks of a token
    kept[:, 0, 6:] = False
    bring(slots.store, slots.source, experts_of(kept), {0: kept[0], 1: kept[1]})
    seen: list[tuple[int, int, int]] = []
    slots.record(lambda layer, logits, ids, weights: seen.append((layer, logits.shape[1], int(ids.max()))))
    mixed = prompts(batch=2)
    slots.steps(torch.tensor([0, 1]).repeat_interleave(mixed.shape[1]).tolist())
    together = slot_logits(slots, mixed)
    assert seen == [(0, 6, 6), (1, 16, 15)]
    stock.model.layers[0].mlp.gate.top_k = 2
    with masked_selection(kept[:1], ONE_ROW):
        expected = stock_logits(stock, prompts())
    slots.steps(0)
    assert torch.equal(slot_logits(slots, prompts()), expected)
    torch.testing.assert_close(together[:1], slot_logits(slots, mixed[:1]), rtol=1e-4, atol=1e-4)
