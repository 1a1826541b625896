"""The transformers engine's own affairs: logits of mixed batches, faults inside a step, KV memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import EXPERTS, LAYERS, WAIT_SECONDS, HfBench, hf_bench, prompt
from support.oracle import masked_selection, stock_logits
from transformers import AutoModelForCausalLM

from premoe_runtime.engines.base import Load
from premoe_runtime.engines.hf.attention import Reading, attend, attention_mask, neighbours
from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.kv import KVPool, KVShape, StepCache
from premoe_runtime.engines.hf.step import Chunk, ChunkResult, StepRunner, kv_shape
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.residency.copier import Copied, Copy


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[HfBench]:
    with hf_bench(tmp_path, prefill_tokens=16) as opened:
        yield opened


def runner_of(bench: HfBench) -> StepRunner:
    assert isinstance(bench.engine, HfEngine)
    return bench.engine._sequences._runner


def test_logits_of_ragged_mixed_batches_equal_the_masked_stock_model(bench: HfBench) -> None:
    stock = AutoModelForCausalLM.from_pretrained(bench.folder, dtype=torch.float32, experts_implementation="grouped_mm")
    pool = KVPool(kv_shape(bench.slot_model), rows=4, context=64)
    runner = StepRunner(bench.slot_model, pool)
    sequences = [prompt(length, seed=length) for length in (23, 30, 9)]
    # KV rows out of order and with a gap, every sequence at another place, two forwards each.
    rows, cuts = (3, 0, 1), (20, 11, 8)
    first = [
        Chunk(row, 0, tuple(s[:cut]), index, 4)
        for index, (row, s, cut) in enumerate(zip(rows, sequences, cuts, strict=True))
    ]
    rest = [
        Chunk(row, cut, tuple(s[cut:]), index, 4)
        for index, (row, s, cut) in enumerate(zip(rows, sequences, cuts, strict=True))
    ]
    runner.run(first)
    for index, result in enumerate(runner.run(rest)):
        with masked_selection(bench.kept[index][None], torch.zeros(1, dtype=torch.int64)) as seen:
            expected = stock_logits(stock.eval(), torch.tensor([sequences[index]]))[0, -1]
        assert seen.share_changed >= 0.3
        assert torch.allclose(result.logits, expected, atol=2e-4, rtol=1e-4)
        assert 0 < result.mass < len(sequences[index])


def test_a_fault_in_a_step_fails_only_the_sequence_it_belongs_to(
    bench: HfBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of(bench)
    original = runner.run

    def run(chunks: Sequence[Chunk]) -> list[ChunkResult]:
        if any(chunk.pattern_row == 2 and chunk.start > 10 for chunk in chunks):
            raise RuntimeError("broken step")
        return original(chunks)

    expected = [bench.run(prompt(8, seed=index), row=index, max_tokens=12).tokens for index in range(2)]
    monkeypatch.setattr(runner, "run", run)
    jobs = [bench.submit(prompt(8, seed=index), row=index, max_tokens=12) for index in range(3)]
    assert [job.wait().tokens for job in jobs[:2]] == expected
    assert isinstance(jobs[2].wait().last.error, RuntimeError)
    assert jobs[2].last.finish is None
    assert jobs[2].last.timings is not None
    monkeypatch.undo()
    assert bench.run(prompt(8), row=2, max_tokens=2).last.finish == "length"


def test_when_every_step_is_broken_all_fail_and_the_loop_goes_on(
    bench: HfBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(chunks: Sequence[Chunk]) -> list[ChunkResult]:
        raise MemoryError("none left")

    monkeypatch.setattr(runner_of(bench), "run", run)
    jobs = [bench.submit(prompt(8), max_tokens=3) for _ in range(3)]
    assert all(isinstance(job.wait().last.error, MemoryError) for job in jobs)
    monkeypatch.undo()
    assert bench.run(prompt(8), max_tokens=3).last.finish == "length"
    assert isinstance(bench.engine, HfEngine)
    assert bench.engine._sequences._pool.free == 8


def test_logits_that_are_not_numbers_fail_the_sequence(bench: HfBench, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(bench)
    original = runner.run

    def run(chunks: Sequence[Chunk]) -> list[ChunkResult]:
        return [ChunkResult(result.logits * torch.nan, result.mass) for result in original(chunks)]

    monkeypatch.setattr(runner, "run", run)
    assert isinstance(bench.run(prompt(8), max_tokens=3).last.error, CorruptData)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [("qwen3_moe", {}), ("deepseek_v3", {}), ("gpt_oss", {}), ("phimoe", {}), ("qwen3_next", {})],
)
def test_a_prompt_whose_router_logits_are_not_finite_fails_alone(
    tmp_path: Path, family: str, overrides: dict[str, object], value: float
) -> None:
    with hf_bench(tmp_path, family=family, overrides=overrides, kept_per_layer=13, prefill_tokens=32) as bench:
        active = bench.slot_model.manifest.top_k

        def run() -> list[list[int]]:
            jobs = [bench.submit(prompt(6, seed=s), row=s, active=active, max_tokens=8) for s in range(2)]
            return [job.wait().tokens for job in jobs]

        expected = run()
        bad = next(
            token
            for token in range(256)
            if token not in {t for row in expected for t in row} | {*prompt(6, 0), *prompt(6, 1)}
        )
        bench.slot_model.model.get_input_embeddings().weight[bad] = value
        failing = bench.submit([*prompt(3, seed=5), bad, 2], row=2, active=active, max_tokens=8)
        assert run() == expected
        assert isinstance(failing.wait().last.error, CorruptData)
        assert "not finite" in str(failing.last.error)
        assert run() == expected


def test_a_failed_sequence_leaves_nothing_in_its_row(bench: HfBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A masked NaN would still spoil the product with the values of a longer neighbour's columns."""
    assert isinstance(bench.engine, HfEngine)
    expected = bench.run(prompt(6), max_tokens=6).tokens
    pool, runner = bench.engine._sequences._pool, runner_of(bench)
    original = runner.run

    def run(chunks: Sequence[Chunk]) -> list[ChunkResult]:
        results = original(chunks)
        for chunk in chunks:
            pool.layer(0)[0][chunk.row].fill_(torch.nan)
        return [ChunkResult(result.logits * torch.nan, result.mass) for result in results]

    monkeypatch.setattr(runner, "run", run)
    assert isinstance(bench.run(prompt(8), max_tokens=3).last.error, CorruptData)
    monkeypatch.undo()
    assert bench.run(prompt(6), max_tokens=6).tokens == expected
    assert all(torch.isfinite(half).all() for layer in range(LAYERS) for half in pool.layer(layer))


def test_an_answer_never_sees_what_a_row_held_before(bench: HfBench) -> None:
    assert isinstance(bench.engine, HfEngine)
    expected = bench.run(prompt(10), max_tokens=10).tokens
    pool = bench.engine._sequences._pool

    # Nothing runs: the engine waits for a command.
    for layer in range(LAYERS):
        for half in pool.layer(layer):
            half.fill_(1e4)
    assert bench.run(prompt(10), max_tokens=10).tokens == expected


def test_half_precision_runs(tmp_path: Path) -> None:
    with hf_bench(tmp_path, dtype=torch.bfloat16) as bench:
        assert len(bench.run(prompt(8), max_tokens=5).tokens) == 5


def test_a_fixed_pool_is_all_the_kv_there_is(tmp_path: Path) -> None:
    with hf_bench(tmp_path, max_sequences=3, context=48, kept_per_layer=EXPERTS) as bench:
        assert isinstance(bench.engine, HfEngine)
        per_token = 2 * LAYERS * 2 * 16 * 4
        assert bench.engine._sequences._pool.num_bytes == 3 * 48 * per_token
        assert kv_shape(bench.slot_model).token_bytes == per_token


def test_a_context_beyond_the_models_own_is_refused_not_cut(tmp_path: Path) -> None:
    refused = pytest.raises(InvalidInput, match="context 1025 is outside 1 to 1024")
    with refused, hf_bench(tmp_path, context=1025):
        pass


def test_parked_rows_come_back_as_they_were() -> None:
    pool = KVPool(KVShape(range(3), 2, 4, 4, torch.float32, torch.device("cpu")), rows=2, context=6)
    row = pool.take()
    for index in range(3):
        for half in pool.layer(index):
            half[row] = torch.randn(2, 6, 4)
    before = [[half[row, :, :5].clone() for half in pool.layer(index)] for index in range(3)]
    parked = pool.park(row, 5)
    pool.give_back(row)
    pool.take()
    other = pool.take()
    assert pool.free == 0
    pool.unpark(other, parked)
    for index in range(3):
        for half, expected in zip(pool.layer(index), before[index], strict=True):
            assert torch.equal(half[other, :, :5], expected)


@pytest.mark.parametrize(
    ("rows", "lengths", "expected"),
    [
        ([2, 3, 4], [9, 9, 9], [(0, 3)]),
        ([1, 3], [9, 9], [(0, 1), (1, 2)]),
        ([1, 0], [9, 9], [(0, 1), (1, 2)]),
        ([0, 1, 2, 3], [4000, 30, 40, 30], [(0, 1), (1, 4)]),
        ([0, 1, 2], [30, 4000, 3900], [(0, 1), (1, 3)]),
    ],
)
def test_rows_are_read_together_where_that_costs_less(
    rows: list[int], lengths: list[int], expected: list[tuple[int, int]]
) -> None:
    assert [(cut.start, cut.stop) for cut in neighbours(rows, lengths, 1)] == expected


def test_masks_hide_the_future_and_what_lies_before_the_window() -> None:
    seen = attention_mask(torch.tensor([[0, 1], [3, 4]]), slice(0, 5), dtype=torch.float32, window=3) == 0
    assert seen[:, 0].tolist() == [
        [[True, False, False, False, False], [True, True, False, False, False]],
        [[False, True, True, True, False], [False, False, True, True, True]],
    ]


@settings(deadline=None, max_examples=80)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=5),
    rows=st.permutations(range(6)),
    decode=st.booleans(),
    window=st.sampled_from([None, None, 1, 5, 40]),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    seed=st.integers(0, 1000),
)
def test_attention_over_the_pool_equals_attention_one_by_one(
    chunks: list[tuple[int, int]],
    rows: list[int],
    decode: bool,
    window: int | None,
    heads: tuple[int, int],
    seed: int,
) -> None:
    """The oracle: each sequence's own columns, copied, keys and values repeated per query head, a plain softmax."""
    generator = torch.Generator().manual_seed(seed)
    starts, counts = [start for start, _ in chunks], [1 if decode else count for _, count in chunks]
    width, rows = max(counts), rows[: len(chunks)]
    pool = KVPool(KVShape(range(1), heads[1], 8, 8, torch.float32, torch.device("cpu")), rows=6, context=48)
    for half in pool.layer(0):
        half.copy_(torch.randn(half.shape, generator=generator) * 9)
    offsets = torch.arange(width) - torch.tensor([[width - count] for count in counts])
    positions = torch.tensor(starts)[:, None] + offsets.clamp(min=0)
    new = torch.randn(2, len(chunks), heads[1], width, 8, generator=generator)
    query = torch.randn(len(chunks), heads[0], width, 8, generator=generator)
    keys, values = StepCache(pool, rows, positions, offsets >= 0).update(new[0], new[1], 0)
    reading = Reading(rows, positions, heads[0] // heads[1], torch.float32, torch.device("cpu"))
    found, _ = attend(torch.nn.Module(), query, keys, values, None, reading=reading, scaling=0.3, sliding_window=window)
    for index, (row, start, count) in enumerate(zip(rows, starts, counts, strict=True)):
        end = start + count
        assert torch.equal(keys[row, :, start:end], new[0, index, :, width - count :])
        own = [half[row, :, :end].repeat_interleave(heads[0] // heads[1], dim=0) for half in (keys, values)]
        scores = query[index, :, width - count :] @ own[0].transpose(1, 2) * 0.3
        distance = torch.arange(start, end)[:, None] - torch.arange(end)
        scores = scores.masked_fill((distance < 0) | (distance >= (window or 99)), -torch.inf)
        expected = (scores.softmax(-1) @ own[1]).transpose(0, 1)
        torch.testing.assert_close(found[index, width - count :], expected, rtol=1e-5, atol=5e-5)


def test_a_copying_thread_that_dies_ends_the_engine(bench: HfBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever waits for the swap would wait for ever."""
    assert isinstance(bench.engine, HfEngine)

    def died(*args: object, **kwargs: object) -> Copied:
        raise MemoryError("no room for a thought")

    monkeypatch.setattr(bench.engine._copier, "run", died)
    bench.engine.post(Load(Copy(())))
    bench.engine._threads[0].join(WAIT_SECONDS)
    (ended,) = bench.reports.ended
    assert isinstance(ended.error, MemoryError)
