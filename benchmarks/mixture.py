"""Requests under four patterns in one batch, against one pattern's requests after another's: vLLM behind a front.

    make bench-mixture [ARGS="--rounds 7 --threads 2 --json FILE"]

The random model of ``throughput``, four patterns of an eighth of the experts each, none of which two share: the worst
case for a batch of all. Three ways without it: groups after one another where all four lie in slots already, the same
in slots for one group, which must be swapped from host memory, and all sent at once to these slots, where the front
gives turns. All take turns round by round, and only ratios should be quoted. Timed from sending to the last token.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import click
from _load import thread_seconds
from _report import Report, interleaved, json_option
from _worker import Worker, pack_of, part, set_up, worker
from throughput import ANSWER_TOKENS, EXPERTS, LAYERS, PROMPT_TOKENS, TOP_K, WIDTHS

from premoe_runtime.serving.requests import KeptPattern

PATTERNS, REQUESTS = 4, 32


class Way:
    """One way to have all answered, and the processor seconds of its runs: of vLLM's process and of this one."""

    def __init__(self, peer: Worker, batches: Sequence[Sequence[KeptPattern]], answer_tokens: int) -> None:
        self._peer, self._batches, self._answer_tokens = peer, batches, answer_tokens
        self.cpu: list[float] = []

    def __call__(self) -> float:
        """Seconds until the last of the batches, sent one after another, is answered."""
        before, seconds = self._used(), 0.0
        for patterns in self._batches:
            ran = self._peer.run_under(patterns, PROMPT_TOKENS, self._answer_tokens)
            seconds += ran.ended.wall - ran.sent.wall
        self.cpu.append(self._used() - before)
        return seconds

    def _used(self) -> float:
        return sum(thread_seconds(self._peer.pid).values()) + time.process_time()


def measure(report: Report, ways: Mapping[str, Way], rounds: int, tokens: int) -> None:
    interleaved(ways, 1)
    samples = interleaved(ways, rounds)
    medians = {name: report.samples(name, seconds) for name, seconds in samples.items()}
    cpu = {name: statistics.median(way.cpu[1:]) for name, way in ways.items()}
    report.values["tokens_a_second"] = {name: round(tokens / median) for name, median in medians.items()}
    for name in [*ways][1:]:
        report.values[f"mixed_over_{name}"] = medians[name] / medians["mixed"]
        report.values[f"mixed_over_{name}_fastest"] = min(samples[name]) / min(samples["mixed"])
        report.values[f"mixed_over_{name}_cpu"] = cpu[name] / cpu["mixed"]


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--dtype", type=click.Choice(sorted(WIDTHS)), default="float32", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of each engine.")
@click.option("--kept", type=click.IntRange(1, EXPERTS // PATTERNS), default=EXPERTS // 8, show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=ANSWER_TOKENS, show_default=True, help="Of each answer.")
@json_option
def main(rounds: int, dtype: str, threads: int, kept: int, tokens: int, json_file: Path | None) -> None:
    """32 requests under four patterns: in one batch, and pattern by pattern."""
    set_up(threads)
    groups = [[part(index, kept)] * (REQUESTS // PATTERNS) for index in range(PATTERNS)]
    start = partial(worker, sequences=REQUESTS, threads=threads, host_blobs=PATTERNS * kept * LAYERS)
    with (
        pack_of(dtype) as pack,
        start(pack, slots=PATTERNS * kept) as wide,
        start(pack, slots=kept) as narrow,
    ):
        settings = {"layers": LAYERS, "experts": EXPERTS, "top_k": TOP_K, "dtype": dtype, "threads": threads}
        asked = {"patterns": PATTERNS, "kept": kept, "requests": REQUESTS, "answer_tokens": tokens}
        report = Report("four patterns mixed, and one after another", settings | asked)
        mixed = [pattern for each in zip(*groups, strict=True) for pattern in each]
        ways = {
            "mixed": Way(wide, [mixed], tokens),
            "one_by_one": Way(wide, groups, tokens),
            "one_by_one_swapped": Way(narrow, groups, tokens),
            "turns": Way(narrow, [mixed], tokens),
        }
        measure(report, ways, rounds, REQUESTS * tokens)
    report.finish(json_file)


if __name__ == "__main__":
    main()
