"""vLLM over slots against vLLM as it comes and of an exported checkpoint, engine ``hf``, transformers, llama.cpp.

    make bench-serve [ARGS="--rounds 7 --threads 2 --json FILE"]

The random model of ``throughput``. Each peer has a process of its own, they run in turns, and only ratios should be
quoted. Decoding is timed from the moment when all of a batch have their first token; prefill up to it, for one prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import click
from _peers import EIGHTH, LLAMA_CPP, PEERS, AnyPeer, Model, start, why_not
from _report import Report, interleaved, json_option
from _worker import set_up
from support.exports import cut_to
from throughput import ANSWER_TOKENS, BATCHES, EXPERTS, LAYERS, PROMPT_TOKENS, TOP_K, WIDTHS, write_checkpoint

from premoe_runtime.offline.export.writer import export
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

PREFILL_TOKENS = 512
NAMES = [*PEERS, LLAMA_CPP]
RATIOS = (
    ("slots_all", "vllm"),
    ("slots_eighth", "vllm"),
    ("slots_eighth", "exported"),
    ("worker_all", "slots_all"),
    ("worker_all", "hf"),
    ("vllm", "transformers"),
    ("vllm", LLAMA_CPP),
    ("worker_all", LLAMA_CPP),
    ("slots_eighth", LLAMA_CPP),
)
"""How much faster the first is than the second."""


@contextmanager
def model_of(dtype: str) -> Iterator[Model]:
    with tempfile.TemporaryDirectory(prefix="premoe-bench-") as name:
        folder = Path(name)
        write_checkpoint(folder / "checkpoint", dtype)
        pack = write_pack(open_source(str(folder / "checkpoint")), open_store((folder / "store").as_uri())).url
        source = open_pack(pack)
        export(source, cut_to(source, f"{TOP_K}/{EIGHTH}"), str(folder / "exported"))
        yield Model(folder / "checkpoint", folder / "exported", pack, dtype)


def measure(report: Report, peers: Mapping[str, AnyPeer], rounds: int) -> None:
    for batch in BATCHES:
        runs = {name: partial(_decode, peer, batch) for name, peer in peers.items()}
        compare(report, f"decode_{batch}", runs, rounds, tokens=1)
    runs = {name: partial(_prefill, peer) for name, peer in peers.items()}
    compare(report, f"prefill_{PREFILL_TOKENS}", runs, rounds, tokens=PREFILL_TOKENS)


def _decode(peer: AnyPeer, batch: int) -> float:
    return peer.run(batch, PROMPT_TOKENS, ANSWER_TOKENS).decode


def _prefill(peer: AnyPeer) -> float:
    return peer.run(1, PREFILL_TOKENS, 1).prefill


def compare(
    report: Report,
    name: str,
    runs: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    tokens: int,
    ratios: Sequence[tuple[str, str]] = RATIOS,
) -> None:
    """Tokens a second of each; ratios by medians and by the fastest rounds, which a busy machine disturbs least."""
    interleaved(runs, 1)
    samples = interleaved(runs, rounds)
    medians = {label: report.samples(f"{name}_{label}", seconds) for label, seconds in samples.items()}
    report.values[f"{name}_tokens_a_second"] = {label: round(tokens / median) for label, median in medians.items()}
    for faster, than in ratios:
        if faster in runs and than in runs:
            report.values[f"{name}_{faster}_over_{than}"] = medians[than] / medians[faster]
            report.values[f"{name}_{faster}_over_{than}_fastest"] = min(samples[than]) / min(samples[faster])


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--dtype", type=click.Choice(sorted(WIDTHS)), default="float32", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of every peer.")
@click.option(
    "--peer", "names", type=click.Choice([*PEERS, LLAMA_CPP]), multiple=True, help="Only these; several times."
)
@json_option
def main(rounds: int, dtype: str, threads: int, names: tuple[str, ...], json_file: Path | None) -> None:
    """Decoding at batch 1, 8 and 32 and one long prompt: vLLM over slots, as it comes, and others."""
    set_up(threads)
    with model_of(dtype) as model, ExitStack() as stack:
        report = Report(
            "vLLM over slots against vLLM as it comes, exported, hf, transformers and llama.cpp",
            {
                "dtype": dtype,
                "layers": LAYERS,
                "experts": EXPERTS,
                "top_k": TOP_K,
                "eighth": EIGHTH,
                "threads": threads,
            },
        )
        peers = {}
        for name in names or NAMES:
            if reason := why_not(name, dtype):
                click.echo(f"{name} is left out: {reason}", err=True)
                continue
            click.echo(f"starting {name}", err=True)
            peers[name] = start(name, model, threads)
            stack.callback(peers[name].close)
        measure(report, peers, rounds)
    report.finish(json_file)


if __name__ == "__main__":
    main()
