"""The engine ``vllm`` in a child process: what the contract of all engines (tests/contract) does not ask of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.engines import (
    EXPERTS,
    WAIT_SECONDS,
    Bench,
    Collector,
    FrontBench,
    ground,
    hf_bench,
    pattern,
    prompt,
)
from support.tiny import tiny_checkpoint
from support.vllm_bench import HEADS, Benches, vllm_benches, vllm_child

from premoe_runtime.engines.base import Logprobs
from premoe_runtime.engines.child.engine import ChildEngine
from premoe_runtime.formats.errors import InvalidInput, Unavailable
from premoe_runtime.serving.front import Front

__all__ = ["vllm_benches"]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

QWEN = HEADS["qwen3_moe"]
A, B, C = pattern("a", range(4)), pattern("b", range(2, 6)), pattern("c", range(8, 12))


@pytest.fixture(scope="module")
def bench(vllm_benches: Benches) -> Bench:
    # Blocks of the KV cache small enough for prompts of tests to fill some.
    return vllm_benches.open(prefill_tokens=32, given={"block_size": 32})


@contextmanager
def fronted(folder: Path, **options: Any) -> Iterator[FrontBench]:
    """Six slots a layer: room for A and B together, not for C beside both."""
    made = ground(folder, rows=0, slots=6, host_blobs=24, overrides=QWEN)
    engine = vllm_child(made.folder, made.shape, made.arena)
    front = Front(engine, made.shape, made.arena, made.source, retry_seconds=(), **options)
    try:
        yield FrontBench(front, engine, made.source)
    finally:
        front.close()


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontBench]:
    with fronted(tmp_path_factory.mktemp("front")) as bench:
        yield bench


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 4 * WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def places(collector: Collector) -> list[Logprobs]:
    return [each for event in collector.events for each in (*event.prompt_logprobs, *event.logprobs)]


def ask(bench: Bench, token_ids: list[int], kv_key: str, **options: Any) -> Collector:
    request = replace(bench.request(token_ids, **options), kv_key=kv_key)
    return bench.post(request, Collector(request.request_id)).wait()


def test_log_probabilities_equal_those_of_the_engine_hf_in_a_mixed_batch(bench: Bench, tmp_path: Path) -> None:
    jobs = [(prompt(9 + 11 * index, seed=index), index % 3, 1 + index % 4) for index in range(7)]

    def answers(engine: Bench) -> list[Collector]:
        options: dict[str, Any] = {"max_tokens": 16, "logprobs": 5, "prompt_logprobs": 5}
        together = [engine.submit(asked, row=row, active=active, **options) for asked, row, active in jobs]
        return [each.wait() for each in together]

    with hf_bench(tmp_path, overrides=QWEN) as other:
        assert other.kept.equal(bench.kept)
        pairs = list(zip(answers(bench), answers(other), strict=True))
    for ours, theirs in pairs:
        assert ours.tokens == theirs.tokens
        assert ours.last.retained_mass == pytest.approx(theirs.last.retained_mass, abs=1e-5)
        for mine, its in zip(places(ours), places(theirs), strict=True):
            assert mine.token_id == its.token_id
            assert mine.logprob == pytest.approx(its.logprob, abs=1e-4)
            assert [value for _, value in mine.top] == pytest.approx([value for _, value in its.top], abs=1e-4)


def test_prefixes_are_shared_under_one_kv_key_and_no_other(bench: Bench) -> None:
    asked = prompt(160, seed=7)

    def answer(kv_key: str, row: int) -> tuple[list[Logprobs], int]:
        before = bench.reports.last.steps
        found = ask(bench, asked, kv_key, row=row, max_tokens=6, logprobs=3)
        return places(found), bench.reports.last.steps - before

    alone = [answer("", row) for row in range(2)]
    first, again = answer("row 0", 0), answer("row 0", 0)
    assert first == alone[0]
    assert again[0] == alone[0][0]
    assert again[1] < first[1], "nothing was taken from the cache"
    # Another pattern's key, and another tenant's, find nothing.
    assert answer("row 1", 1) == alone[1]
    assert answer("row 0, another tenant", 0) == alone[0]
    # What they are kept from: another pattern's keys and values.
    assert answer("row 0", 1)[0] != alone[1][0]


def test_compiled_it_answers_as_eager_with_the_widths_that_it_was_made_for(bench: Bench, vllm_benches: Benches) -> None:
    compiled = vllm_benches.open(given={"enforce_eager": False}, active=(2,))
    jobs = [(prompt(9 + 11 * index, seed=index), index % 3, (2, 4)[index % 2]) for index in range(6)]
    answers = []
    for engine in (bench, compiled):
        together = [engine.submit(asked, row=row, active=active, max_tokens=12) for asked, row, active in jobs]
        answers.append([each.wait() for each in together])
    for eager, other in zip(*answers, strict=True):
        assert eager.tokens == other.tokens
        assert eager.last.retained_mass == pytest.approx(other.last.retained_mass, abs=1e-5)
    refused = compiled.run(prompt(4), active=3).last.error
    assert isinstance(refused, InvalidInput)
    assert refused.reason == "ACTIVE_EXPERTS_INVALID"
    compiled.boundary()


def test_a_row_that_is_not_there_is_refused_and_the_engine_goes_on(bench: Bench) -> None:
    for row in (-1, 64):
        refused = bench.run(prompt(4), row=row).last.error
        assert isinstance(refused, InvalidInput)
        assert refused.reason == "ROW_UNKNOWN"
    assert bench.run(prompt(4), max_tokens=2).last.finish == "length"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"enable_eplb": True}, "enable_eplb"),
        ({"max_model_len": 64}, "context_length"),
        ({"kv_transfer_config": {}}, "kv_transfer_config"),
        ({"block_size": "many"}, "block_size"),
        ({"no_such_argument": 1}, "no_such_argument"),
    ],
)
def test_arguments_that_do_not_go_are_one_line(tmp_path: Path, given: dict[str, Any], named: str) -> None:
    made = ground(tmp_path, overrides=QWEN)
    with pytest.raises(InvalidInput) as caught:
        vllm_child(made.folder, made.shape, made.arena, given=given)
    assert caught.value.reason == "ENGINE_ARGUMENT"
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_it_does_not_run_is_refused_by_name(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "hunyuan_v1_moe")
    made = ground(tmp_path, family="hunyuan_v1_moe")
    with pytest.raises(InvalidInput, match="use the engine hf") as caught:
        vllm_child(made.folder, made.shape, made.arena)
    assert caught.value.reason == "ENGINE_UNSUPPORTED"


def test_patterns_share_a_batch_and_give_way_to_others_while_one_decodes(front: FrontBench) -> None:
    """Experts of a pattern at rest are overwritten beside steps of another; afterwards both answer as before."""
    asked = prompt(20)
    alone = {each.id: front.run(each, asked, max_tokens=300).tokens for each in (A, B, C)}
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    long, _ = front.submit(A, asked, max_tokens=300)
    short, _ = front.submit(B, asked, max_tokens=300)
    assert (long.wait().tokens, short.wait().tokens) == (alone["a"], alone["b"])
    # A's four experts and C's four have no room together: they take turns.
    both = [front.submit(each, asked, max_tokens=300)[0] for each in (A, C, A, C)]
    assert [each.wait().tokens for each in both] == [alone["a"], alone["c"]] * 2
    assert front.front.stats().pauses >= 1
    front.front.check_integrity()


def test_a_slot_is_written_while_a_pattern_beside_it_decodes(front: FrontBench) -> None:
    asked = prompt(20, seed=1)
    narrow = [pattern(f"narrow {first}", range(first, first + 2)) for first in (0, 8, 10, 12)]
    # Whichever pattern had the last turn, its experts are gone.
    assert front.run(pattern("others", range(10, 16)), asked, max_tokens=2).last.finish == "length"
    alone = front.run(narrow[0], asked, max_tokens=900).tokens
    long, _ = front.submit(narrow[0], asked, max_tokens=900)
    long.wait_first()
    short, started = front.submit(narrow[1], asked, max_tokens=2)
    assert short.wait().last.finish == "length"
    assert started.reports[0].blobs == 4
    assert not long.ended.is_set()
    for other in (*narrow[2:], *narrow[1:]):
        assert front.run(other, asked, max_tokens=2).last.finish == "length"
    assert long.wait().tokens == alone
    front.front.check_integrity()


def test_a_request_that_is_cancelled_in_mid_swap_leaves_slots_whole(tmp_path: Path) -> None:
    with fronted(tmp_path, copy_rate=60_000.0) as bench:
        blob = bench.front.residency().device_bytes // 12
        assert 8 * blob / 60_000 > 2, "the swap would be over before it can be cancelled"
        waiting, _ = bench.submit(A, prompt(4), max_tokens=900)
        wait_until(lambda: len(bench.source.blobs_read) == 8)
        waiting.cancel()
        assert waiting.wait().last.finish == "cancelled"
        assert bench.run(C, prompt(4), max_tokens=5).last.finish == "length"
        bench.front.check_integrity()


def test_a_child_that_dies_ends_every_request_once_and_serving(tmp_path: Path) -> None:
    with fronted(tmp_path) as bench:
        assert isinstance(bench.engine, ChildEngine)
        running, _ = bench.submit(A, prompt(4), max_tokens=900)
        running.wait_first()
        waiting, _ = bench.submit(C, prompt(4), max_tokens=5)
        os.kill(bench.engine.pid, signal.SIGKILL)
        for one in (running, waiting):
            one.wait()
            assert [event.last for event in one.events].count(True) == 1
            assert isinstance(one.last.error, Unavailable)
        assert "killed by SIGKILL" in str(bench.front.ended.result(WAIT_SECONDS))
        with pytest.raises(Unavailable):
            bench.submit(A, prompt(4))


def test_every_expert_in_place_is_the_whole_model(vllm_benches: Benches) -> None:
    bench = vllm_benches.open(rows=1, kept_per_layer=EXPERTS)
    assert bench.run(prompt(8), max_tokens=4).last.retained_mass == pytest.approx(1.0)
