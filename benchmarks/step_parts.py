"""Parts of a decoding step against the way transformers, or a plain sampler, does them: CPU seconds, one process.

    OMP_NUM_THREADS=1 python benchmarks/step_parts.py [--rounds 15] [--json FILE]

Attention: 8 sequences of 1,024 columns, 32 query heads over 4 KV heads, with the mask of sequences that differ in
length. Sampling: temperature 0.6, top-p 0.9 over 151,936 tokens; the plain sampler sorts a row's vocabulary twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from _report import Report, interleaved, json_option
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from premoe_runtime.engines.hf.attention import Reading, attend, attention_mask
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.engines.sampling import Sampler, choose_batch

VOCABULARY, SEQUENCES, COLUMNS = 151_936, 8, 1024
QUERY_HEADS, KV_HEADS, HEAD_DIM = 32, 4, 128


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    with torch.inference_mode():
        work()
    return time.process_time() - began


def attention_parts() -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(2, SEQUENCES, KV_HEADS, 2 * COLUMNS, HEAD_DIM, generator=generator)
    query = torch.randn(SEQUENCES, QUERY_HEADS, 1, HEAD_DIM, generator=generator)
    positions = torch.arange(COLUMNS - SEQUENCES, COLUMNS)[:, None]
    mask = attention_mask(positions, slice(0, COLUMNS), dtype=torch.float32)
    groups = QUERY_HEADS // KV_HEADS
    reading = Reading(range(SEQUENCES), positions, groups, torch.float32, torch.device("cpu"))
    module = nn.Module()
    module.num_key_value_groups = groups  # type: ignore[assignment]
    keys, values = pool[:, :, :, :COLUMNS]
    return {
        "stock": lambda: sdpa_attention_forward(module, query, keys, values, mask, scaling=0.1),
        "ours": lambda: attend(module, query, pool[0], pool[1], None, reading=reading, scaling=0.1),
    }


def sampling_parts() -> dict[str, Callable[[], object]]:
    logits = 4 * torch.randn(SEQUENCES, VOCABULARY, generator=torch.Generator().manual_seed(0))
    samplers = [Sampler(SamplingParams(temperature=0.6, top_p=0.9, seed=seed)) for seed in range(SEQUENCES)]
    return {
        "plain": lambda: [plain_choice(row, sampler) for row, sampler in zip(logits, samplers, strict=True)],
        "ours": lambda: choose_batch(samplers, logits),
    }


def plain_choice(logits: torch.Tensor, sampler: Sampler) -> int:
    """One token as the textbook says: sort, cut the nucleus, sort again, invert."""
    probabilities = torch.softmax((logits.double() - logits.max()) / sampler.temperature, dim=-1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    probabilities = probabilities.index_fill(0, ids[ordered.cumsum(0) - ordered >= sampler.top_p], 0.0)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    cumulative = ordered.cumsum(0)
    return int(ids[int(torch.searchsorted(cumulative, sampler.draw() * cumulative[-1], right=True))])


@click.command()
@click.option("--rounds", default=15, show_default=True)
@json_option
def main(rounds: int, json_file: Path | None) -> None:
    """Attention and sampling of one decoding step, against the plain way."""
    report = Report("parts of a step", {"sequences": SEQUENCES, "columns": COLUMNS, "vocabulary": VOCABULARY})
    for name, parts in (("attention", attention_parts()), ("sampling", sampling_parts())):
        runs = {label: (lambda work=work: cpu_seconds(work)) for label, work in parts.items()}
        interleaved(runs, 1)
        samples = interleaved(runs, rounds)
        medians = [report.samples(f"{name}_{label}", seconds) for label, seconds in samples.items()]
        report.values[f"{name}_ratio"] = medians[0] / medians[1]
        fastest = [min(seconds) for seconds in samples.values()]
        report.values[f"{name}_ratio_fastest"] = fastest[0] / fastest[1]
    report.finish(json_file)


if __name__ == "__main__":
    main()
