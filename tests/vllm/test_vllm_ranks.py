"""vLLM on two ranks, each with its share of the slots: behind the port, and by the plug-in alone under vLLM's executor.

vLLM's ranks on CPUs wait for each other without giving their cores away, so answers here are short.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from premoe_worker.domain import AnswerFormat, Ask
from support.engines import (
    WAIT_SECONDS,
    Collector,
    FrontBench,
    ground,
    managed_bench,
    pattern,
    prompt,
)
from support.grammars import grammar_of
from support.oracle import random_kept
from support.tiny import tiny_checkpoint
from support.vllm_bench import HEADS, vllm_child
from support.vllm_engines import CHECK, Answer, Request, bring, generate, run, slots

from premoe_runtime.engines.child.ranked import RankedEngine
from premoe_runtime.formats.errors import InvalidInput, Unavailable
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.serving.front import Front
from premoe_runtime.storage import open_store

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

QWEN = HEADS["qwen3_moe"]
TWO = {"tensor_parallel_size": 2}
A, B, C = pattern("a", range(4)), pattern("b", range(2, 6)), pattern("c", range(8, 12))
POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontBench]:
    """Six slots a layer, three on each rank: room for A and B together, not for C beside both."""
    made = ground(tmp_path_factory.mktemp("ranks"), rows=0, slots=6, host_blobs=24, overrides=QWEN)
    engine = vllm_child(made.folder, made.shape, made.arena, given=TWO)
    assert isinstance(engine, RankedEngine)
    front = Front(engine, made.shape, made.arena, made.source, retry_seconds=())
    try:
        yield FrontBench(front, engine, made.source)
    finally:
        front.close()


def test_it_answers_as_the_engine_hf_in_turns_with_swaps(front: FrontBench, tmp_path: Path) -> None:
    asked = [prompt(7 + 5 * number, seed=number) for number in range(4)]

    def answers(bench: FrontBench) -> list[Collector]:
        together = [
            bench.submit(each, tokens, max_tokens=12, logprobs=5, active=active)[0]
            for each, tokens, active in zip((A, B, C, A), asked, (4, 4, 3, 2), strict=True)
        ]
        return [each.wait() for each in together]

    with managed_bench(tmp_path, slots=6, overrides=QWEN) as other:
        pairs = list(zip(answers(front), answers(other), strict=True))
    for ours, theirs in pairs:
        assert ours.tokens == theirs.tokens
        assert ours.last.retained_mass == pytest.approx(theirs.last.retained_mass, abs=1e-5)
        for mine, its in zip(ours.events, theirs.events, strict=True):
            for here, there in zip(mine.logprobs, its.logprobs, strict=True):
                assert here.logprob == pytest.approx(there.logprob, abs=1e-4)
    front.front.check_integrity()


def test_answers_end_alike_on_all_ranks_however_they_end(front: FrontBench) -> None:
    shaped = grammar_of(Ask("", format=AnswerFormat(json.dumps(POINT), strict=True)))
    running = [
        front.submit(A, prompt(6, seed=1), max_tokens=40, grammar=shaped)[0],
        front.submit(B, prompt(6, seed=2), max_tokens=200)[0],
        front.submit(A, prompt(6, seed=3), max_tokens=12, temperature=1.0, seed=5)[0],
        front.submit(B, prompt(6, seed=4), max_tokens=12, temperature=1.0)[0],
    ]
    running[1].wait_first()
    running[1].cancel()
    finished = [each.wait().last.finish for each in running]
    assert finished[1:] == ["cancelled", "length", "length"]
    assert finished[0] in ("stop", "length")
    again = front.run(A, prompt(6, seed=3), max_tokens=12, temperature=1.0, seed=5)
    assert again.tokens == running[2].tokens
    front.front.check_integrity()


def test_when_a_rank_dies_every_request_ends_once(front: FrontBench) -> None:
    """The last one over this engine."""
    assert isinstance(front.engine, RankedEngine)
    running, _ = front.submit(A, prompt(4), max_tokens=900)
    running.wait_first()
    waiting, _ = front.submit(C, prompt(4), max_tokens=5)
    os.kill(front.engine.pids[1], signal.SIGKILL)
    for one in (running, waiting):
        one.wait()
        assert [event.last for event in one.events].count(True) == 1
        assert isinstance(one.last.error, Unavailable)
    assert str(front.front.ended.result(WAIT_SECONDS)).startswith("rank 1 of 2: the engine process was killed")


def test_what_does_not_go_round_is_one_line(tmp_path: Path) -> None:
    made = ground(tmp_path, rows=0, slots=6, overrides=QWEN)
    with pytest.raises(InvalidInput) as caught:
        vllm_child(made.folder, made.shape, made.arena, given={**TWO, "enable_eplb": True})
    assert caught.value.reason == "ENGINE_ARGUMENT"
    assert "\n" not in str(caught.value)


def test_the_plug_in_alone_runs_on_ranks_that_vllm_starts(tmp_path: Path) -> None:
    """Against one rank. A pattern without room, and one that comes in while others decode, are the same on both."""
    pack = write_pack(
        open_source(str(tiny_checkpoint(tmp_path / "model", **QWEN))), open_store((tmp_path / "pack").as_uri())
    )
    kept = random_kept(3, pack.manifest.num_layers, pack.manifest.num_experts, 5)
    rows = [[layer.nonzero().flatten().tolist() for layer in each] for each in kept]
    first = [sorted({*one, *other}) for one, other in zip(*rows[:2], strict=True)]
    asked = [prompt(6 + number, seed=number) for number in range(4)]
    stages = [
        bring(dict(enumerate(rows[:2]))),
        bring({2: rows[2]}, first),
        generate([Request(tokens, 1) for tokens in asked], after=4, swap=bring({2: rows[2]}, rows[1])),
        generate([Request(tokens, 1 + number % 2) for number, tokens in enumerate(asked)]),
        CHECK,
    ]
    count = max(map(len, first))
    found = run({"alone": slots(pack.url, count, stages), "ranks": slots(pack.url, count, stages, ranks=2)})
    for one, two in zip(found["alone"], found["ranks"], strict=True):
        if isinstance(one, dict):
            assert "slots only" in two["error"]
        elif one and isinstance(one[0], Answer):
            assert max(mine.difference(its) for mine, its in zip(two, one, strict=True)) < 1e-4
