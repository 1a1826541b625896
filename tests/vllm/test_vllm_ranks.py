"""The engine ``vllm`` on two ranks, each with half of the slots, behind the port and by the plug-in alone."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.engines import Bench, hf_bench, prompt
from support.vllm_bench import HEADS, Benches, vllm_benches

__all__ = ["vllm_benches"]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

QWEN = HEADS["qwen3_moe"]
TWO = {"tensor_parallel_size": 2}


@pytest.fixture(scope="module")
def bench(vllm_benches: Benches) -> Bench:
    return vllm_benches.open(given=TWO)


def test_it_answers_as_the_engine_hf(bench: Bench, tmp_path: Path) -> None:
    jobs = [(prompt(9 + 11 * index, seed=index), index % 3, 1 + index % 4) for index in range(7)]

    def answers(engine: Bench):
        together = [engine.submit(asked, row=row, active=active, max_tokens=8, logprobs=5) for asked, row, active in jobs]
        return [each.wait() for each in together]

    with hf_bench(tmp_path, overrides=QWEN) as other:
        assert other.kept.equal(bench.kept)
        pairs = list(zip(answers(bench), answers(other), strict=True))
    for ours, theirs in pairs:
        assert ours.tokens == theirs.tokens
