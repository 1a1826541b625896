"""What measuring scores costs beside a plain forward pass of the same batches.

    python benchmarks/profiling.py [--rounds 9] [--json FILE]

A random Qwen3-MoE with the proportions of the 30B one: 4 layers of 64 experts, top-8, hidden 512, expert width 192.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from _report import Report, interleaved, json_option
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.offline.batches import pad, plan_batches
from premoe_runtime.offline.calibration import Example, Message
from premoe_runtime.offline.profile.measure import load_full_model, make_full, measure_profile
from premoe_runtime.offline.profile.samples import encode_examples
from premoe_runtime.offline.profile.scores import ROUTER_ONLY, USUAL

PROMPTS, CHARACTERS, MAX_TOKENS = 16, 126, 1024
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "hidden_size": 512,
    "moe_intermediate_size": 192,
    "num_attention_heads": 8,
    "head_dim": 64,
}
KINDS: dict[str, Sequence[str]] = {
    "router only": ROUTER_ONLY,
    "norms": (*ROUTER_ONLY, "norm", "reap", "ean"),
    "impact": USUAL,
}
GOALS = {"router only": 0.95, "norms": 0.8}


def plain(model: SlotModel, examples: Sequence[Example]) -> None:
    """The forward passes of a profile, and nothing else."""
    samples = encode_examples(model, examples, answers="none", where="benchmark")
    tokens = [sample.token_ids for sample in samples]
    with torch.no_grad():
        for indices in plan_batches([len(ids) for ids in tokens], MAX_TOKENS):
            batch = pad(tokens, indices, device=model.device)
            model.model(input_ids=batch.token_ids, use_cache=False, logits_to_keep=1)


def timed(work: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return run


@click.command()
@click.option("--rounds", default=9, show_default=True)
@json_option
def main(rounds: int, json_file: Path | None) -> None:
    """Profiling passes against a plain forward pass: medians of interleaved runs, and the ratios."""
    examples = [Example((Message("user", chr(65 + at) * CHARACTERS),), None, at) for at in range(PROMPTS)]
    with TemporaryDirectory(prefix="premoe-profiling-") as folder:
        model = load_full_model(MemorySource(tiny_checkpoint(Path(folder), "qwen3_moe", torch.float32, **SHAPE)))
    make_full(model)

    def measure(names: Sequence[str]) -> None:
        measure_profile(model, examples, task="benchmark", answers="none", scores=names, max_tokens=MAX_TOKENS)

    variants = {name: timed(partial(measure, names)) for name, names in KINDS.items()}
    variants = {"plain forward": timed(partial(plain, model, examples)), **variants}
    report = Report("profiling", {"prompts": PROMPTS, "tokens a batch": MAX_TOKENS, "rounds": rounds, **SHAPE})
    interleaved(variants, 1)
    seconds = {name: report.samples(name, each) for name, each in interleaved(variants, rounds).items()}
    for name in KINDS:
        goal = f" (goal {GOALS[name]:g})" if name in GOALS else ""
        report.values[f"{name}, of plain speed"] = f"{seconds['plain forward'] / seconds[name]:.3f}{goal}"
    report.finish(json_file)


if __name__ == "__main__":
    main()
