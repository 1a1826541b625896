"""Blocks that keep state of a fixed size: what a sequence owns, and that it is nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import LAYERS, HfBench, hf_bench, prompt
from support.family_rows import TINY
from support.oracle import experts_of
from support.processor import INTEL
from support.sources import MemorySource
from support.tiny import tiny_checkpoint, tiny_model
from transformers import DynamicCache, PreTrainedModel
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.kv import KVPool
from premoe_runtime.engines.hf.model import SlotModel, load_slot_model
from premoe_runtime.engines.hf.step import Chunk, ChunkResult, StepRunner, kept_state, kv_shape
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.families.state import stateful_blocks
from premoe_runtime.residency.swap import bring

STATEFUL = sorted(name for name, spec in FAMILIES.items() if spec.state)
each_family = pytest.mark.parametrize("family", STATEFUL)


def stock_cache(model: PreTrainedModel) -> Any:
    return MiniMaxCache() if model.config.model_type == "minimax" else DynamicCache(config=model.config)


def state_of(cache: Any, block: int) -> list[torch.Tensor]:
    """What a stock cache holds of a block: window, then sum."""
    if isinstance(cache, MiniMaxCache):
        return [cache.linear_cache[block]]
    layer = cache.layers[block]
    return [held for held in (layer.conv_states[0], layer.recurrent_states[0]) if held is not None]


def full_model(
    folder: Path, family: str, dtype: torch.dtype = torch.float32, **overrides: Any
) -> tuple[PreTrainedModel, SlotModel]:
    """A stock model and a slot model of the same weights with every expert."""
    slots = load_slot_model(MemorySource(tiny_checkpoint(folder, family, dtype, **overrides)), slots=16)
    everything = torch.ones(LAYERS, 16, dtype=torch.bool)
    bring(slots.store, slots.source, experts_of(everything), {0: everything.numpy()})
    stock = tiny_model(family, dtype, **overrides)
    stock.set_experts_implementation("grouped_mm")
    return stock, slots


def pool_of(slots: SlotModel, rows: int = 3) -> KVPool:
    return KVPool(kv_shape(slots), rows=rows, context=64, kept=kept_state(slots))


def pieces(tokens: Sequence[int], cuts: Sequence[int], row: int = 0) -> list[Chunk]:
    """One sequence in chunks that end at ``cuts``."""
    starts = (0, *cuts[:-1])
    return [Chunk(row, start, tuple(tokens[start:end]), 0, 4) for start, end in zip(starts, cuts, strict=True)]


def held(pool: KVPool, block: int, row: int) -> list[torch.Tensor]:
    assert pool.state is not None
    return [tensor[row] for tensor in pool.state._held[block] if tensor is not None]


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("fp32", "bf16"))
def test_a_family_keeps_what_the_stock_class_keeps(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    stock, slots = full_model(tmp_path, family, dtype)
    cache, pool = stock_cache(stock), pool_of(slots)
    tokens = prompt(9)
    with torch.no_grad():
        stock(torch.tensor([tokens]), past_key_values=cache)
    StepRunner(slots, pool).run(pieces(tokens, [9], row=1))
    blocks = stateful_blocks(stock.config)
    assert blocks
    for block in blocks:
        for ours, theirs in zip(held(pool, block, 1), state_of(cache, block), strict=True):
            assert ours.dtype == theirs.dtype
            if not block and (INTEL or dtype is not torch.float32):
                assert torch.equal(ours, theirs[0])
            elif dtype is torch.float32:
                # Attention before it sums in another order.
                close = 1e-4 if block else 1e-6
                torch.testing.assert_close(ours, theirs[0], rtol=close, atol=close)
    assert pool.state is not None
    assert pool.state.row_bytes == sum(one.nbytes for block in blocks for one in held(pool, block, 0))
    assert pool.num_bytes == 3 * (64 * pool.shape.token_bytes + pool.state.row_bytes)


@each_family
def test_a_prompt_in_pieces_is_the_stock_class_on_the_same_pieces(tmp_path: Path, family: str) -> None:
    # MiniMax's cache counts the tokens in its first block, which must be one with keys and values.
    first: dict[str, Any] = {"layer_types": ["full_attention", "linear_attention"]} if family == "minimax" else {}
    stock, slots = full_model(tmp_path, family, **first)
    cache, pool, tokens = stock_cache(stock), pool_of(slots), prompt(26, seed=3)
    runner = StepRunner(slots, pool)
    assert pool.state is not None
    cuts = [25, 26] if pool.state.whole_prompts else [11, 12, 25, 26]
    for chunk in pieces(tokens, cuts, row=2):
        with torch.no_grad():
            expected = stock(torch.tensor([chunk.tokens]), past_key_values=cache).logits[0, -1]
        torch.testing.assert_close(runner.run([chunk])[0].logits, expected, rtol=1e-4, atol=1e-4)
    if 0 in stateful_blocks(stock.config):
        for ours, theirs in zip(held(pool, 0, 2), state_of(cache, 0), strict=True):
            assert torch.equal(ours, theirs[0]) or not INTEL
            torch.testing.assert_close(ours, theirs[0], rtol=1e-6, atol=1e-6)


@each_family
def test_sequences_that_decode_together_are_those_that_decode_alone(tmp_path: Path, family: str) -> None:
    _, slots = full_model(tmp_path, family)
    sequences = [prompt(length, seed=length) for length in (7, 12, 3)]

    def last(pool: KVPool, rows: Sequence[int], together: bool) -> list[ChunkResult]:
        runner = StepRunner(slots, pool)
        chunks = [pieces(one, [len(one) - 1, len(one)], row) for one, row in zip(sequences, rows, strict=True)]
        for begin, _ in chunks:
            runner.run([begin])
        return runner.run([end for _, end in chunks]) if together else [runner.run([end])[0] for _, end in chunks]

    alone = last(pool_of(slots), (0, 1, 2), together=False)
    for rows in ((0, 1, 2), (2, 0, 1)):
        for ours, theirs in zip(last(pool_of(slots), rows, together=True), alone, strict=True):
            torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)


@each_family
def test_a_failed_forward_changes_no_state(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, slots = full_model(tmp_path, family)
    pool, tokens = pool_of(slots), prompt(12)
    runner = StepRunner(slots, pool)
    begin, end = pieces(tokens, [11, 12])
    runner.run([begin])
    block = stateful_blocks(slots.model.config)[-1]
    before = [one.clone() for one in held(pool, block, 0)]
    with monkeypatch.context() as patched:
        patched.setattr(slots.model.lm_head, "forward", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.run([end])
    assert all(torch.equal(ours, then) for ours, then in zip(held(pool, block, 0), before, strict=True))
    again = runner.run([end])[0].logits
    assert not all(torch.equal(ours, then) for ours, then in zip(held(pool, block, 0), before, strict=True))
    fresh = StepRunner(slots, pool_of(slots))
    fresh.run([begin])
    assert torch.equal(fresh.run([end])[0].logits, again)


def bench_of(folder: Path, family: str, **options: Any) -> Any:
    return hf_bench(folder, family=family, overrides=dict(TINY[family]), prefill_tokens=8, kept_per_layer=13, **options)


def tokens_alone(bench: HfBench, count: int) -> list[list[int]]:
    return [bench.run(prompt(5 + 6 * index, seed=index), row=index, max_tokens=10).tokens for index in range(count)]


@each_family
def test_sequences_of_every_length_share_steps(tmp_path: Path, family: str) -> None:
    with bench_of(tmp_path, family) as bench:
        expected = tokens_alone(bench, 3)
        one = bench.run(prompt(1, seed=9), max_tokens=10).tokens
        jobs = [bench.submit(prompt(5 + 6 * index, seed=index), row=index, max_tokens=10) for index in range(3)]
        jobs.append(bench.submit(prompt(1, seed=9), max_tokens=10))
        assert [job.wait().tokens for job in jobs] == [*expected, one]


@each_family
@pytest.mark.parametrize("parked_bytes", [None, 0], ids=("parked", "computed again"))
def test_a_paused_sequence_goes_on_where_it_was(tmp_path: Path, family: str, parked_bytes: int | None) -> None:
    with bench_of(tmp_path, family, max_sequences=1, parked_bytes=parked_bytes) as bench:
        expected = tokens_alone(bench, 2)
        assert isinstance(bench.engine, HfEngine)
        paused: list[str] = []

        def pause(event: Any) -> None:
            if not paused:
                paused.append(first.request_id)
                bench.pause(first.request_id)

        request = bench.request(prompt(5, seed=0), row=0, max_tokens=10)
        first = type(bench.run(prompt(3), max_tokens=1))(request.request_id, pause)
        bench.post(request, first)
        first.wait_first()
        second = bench.submit(prompt(11, seed=1), row=1, max_tokens=10)
        assert second.wait().tokens == expected[1]
        bench.resume(first.request_id)
        assert first.wait().tokens == expected[0]
        assert bench.engine._sequences._pool.free == 1
