"""vLLM over slots against vLLM as it comes, against an exported checkpoint, our engine ``hf`` and plain transformers.

    make bench-serve [ARGS="--rounds 7 --threads 2 --json FILE"]

The random model of ``throughput``. Each peer has a process of its own, they run in turns, and only ratios should be
quoted. Decoding is timed from the moment when all of a batch have their first token; prefill up to it, for one prompt.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click
import numpy as np
import torch
from _report import Report, interleaved, json_option
from support.exports import cut_to
from throughput import (
    ANSWER_TOKENS,
    BATCHES,
    EXPERTS,
    HOST_BYTES,
    LAYERS,
    PROMPT_TOKENS,
    TOP_K,
    VOCABULARY,
    WIDTHS,
    Plain,
    Served,
    write_checkpoint,
)

from premoe_runtime.engines.vllm.engine import ENVIRONMENT
from premoe_runtime.offline.export.writer import export
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

EIGHTH, PREFILL_TOKENS, CONTEXT, STEP_TOKENS, KV_BYTES = EXPERTS // 8, 512, 1024, 1024, 512 << 20
END_SECONDS = 30.0
RATIOS = (
    ("slots_all", "vllm"),
    ("slots_eighth", "vllm"),
    ("slots_eighth", "exported"),
    ("worker_all", "slots_all"),
    ("worker_all", "hf"),
    ("vllm", "transformers"),
)
"""How much faster the first is than the second."""


class Speed(NamedTuple):
    """Seconds until all of a batch have their first token, and seconds a token of the batch after that; ``swaps``:
    patterns that were swapped in meanwhile.
    """

    prefill: float
    decode: float
    swaps: int = 0


class Runs(Protocol):
    def __call__(self, batch: int, prompt_tokens: int, answer_tokens: int) -> Speed: ...


class Model(NamedTuple):
    """Where it lies, as ``throughput`` made it."""

    checkpoint: Path
    exported: Path
    pack: str
    dtype: str


# What runs in the peers' processes: vLLM is imported there only.


def by_vllm(model: Model, *, folder: str) -> Runs:
    """Stock vLLM, without the plug-in."""
    os.environ["VLLM_PLUGINS"] = ""
    return _timed(_llm(model.dtype, model=str(getattr(model, folder)), enable_prefix_caching=False), row=None)


def by_slots(model: Model, *, slots: int) -> Runs:
    """VLLM with the plug-in, under a pattern that fills the slots."""
    from premoe_runtime.engines.hf.tokenizer import skeleton_folder
    from premoe_runtime.engines.vllm.arguments import arguments
    from premoe_runtime.engines.vllm.plan import SlotPlan

    source = open_pack(model.pack)
    plan = SlotPlan.of(source.manifest(), slots, pack=model.pack, rows=4)
    with skeleton_folder(source) as folder:
        llm = _llm(model.dtype, **arguments(folder, plan))
    llm.collective_rpc("premoe_bring", args=({1: [list(range(slots))] * LAYERS},))
    return _timed(llm, row=1)


def by_worker(model: Model, *, engine: str) -> Runs:
    """The engine behind the port, with slots for all experts, and the serving front before it."""
    served = _served_by_vllm(model.pack) if engine == "vllm" else Served.by_hf(model.pack, EXPERTS, CONTEXT)

    return partial(_run, served)


def by_transformers(model: Model) -> Runs:
    return partial(_run, Plain(model.checkpoint, model.dtype))


def _run(peer: Served | Plain, batch: int, prompt_tokens: int, answer_tokens: int) -> Speed:
    found = peer.run(batch, prompt_tokens, answer_tokens)
    return Speed(found.prefill, found.decode if answer_tokens > 1 else 0.0)


def _served_by_vllm(pack: str) -> Served:
    from premoe_runtime.engines.vllm.engine import VllmEngine
    from premoe_runtime.residency.host_arena import HostArena
    from premoe_runtime.residency.slot_shape import SlotShape
    from premoe_runtime.serving.front import Front

    source = open_pack(pack)
    shape = SlotShape.as_stored(source.manifest(), slots=EXPERTS)
    arena = HostArena(shape.blob_bytes, HOST_BYTES)
    engine = VllmEngine(
        source, shape, arena, max_sequences=max(BATCHES), context=CONTEXT, prefill_tokens=STEP_TOKENS, parked=False
    )
    return Served(Front(engine, shape, arena, source), shape)


def _llm(dtype: str, **arguments: Any) -> Any:
    from vllm import LLM

    return LLM(
        dtype=dtype,
        enforce_eager=True,
        max_model_len=CONTEXT,
        max_num_seqs=max(BATCHES),
        max_num_batched_tokens=STEP_TOKENS,
        kv_cache_memory_bytes=KV_BYTES,
        skip_tokenizer_init=True,
        **arguments,
    )


def _timed(llm: Any, row: int | None) -> Runs:
    from vllm import SamplingParams

    from premoe_runtime.engines.vllm.plan import ROW

    engine, random, serial = llm.llm_engine, np.random.default_rng(0), iter(range(1 << 30))

    def run(batch: int, prompt_tokens: int, answer_tokens: int) -> Speed:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=answer_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=None if row is None else {ROW: row},
        )
        prompts = random.integers(0, VOCABULARY, (batch, prompt_tokens)).tolist()
        made = {f"{next(serial)}": 0 for _ in range(batch)}
        began, known = 0.0, 0
        sent = time.perf_counter()
        for name, prompt in zip(made, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                made[output.request_id] = len(output.outputs[0].token_ids)
            if not began and all(made.values()):
                began, known = time.perf_counter(), sum(made.values())
        decoded = sum(made.values()) - known
        return Speed(began - sent, (time.perf_counter() - began) / decoded if decoded else 0.0)

    return run


def _serve(pipe: Connection, make: Callable[[Any], Callable[..., Speed]], model: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    run = make(model)
    pipe.send(None)
    while (asked := pipe.recv()) is not None:
        pipe.send(run(*asked))


# The rest runs in the process that measures.

PEERS: Mapping[str, Callable[[Model], Runs]] = {
    "vllm": partial(by_vllm, folder="checkpoint"),
    "slots_all": partial(by_slots, slots=EXPERTS),
    "slots_eighth": partial(by_slots, slots=EIGHTH),
    "exported": partial(by_vllm, folder="exported"),
    "worker_all": partial(by_worker, engine="vllm"),
    "hf": partial(by_worker, engine="hf"),
    "transformers": by_transformers,
}


class Peer:
    """One process that runs what ``make`` makes of ``model``. Raises ClickException where it ended."""

    def __init__(self, name: str, make: Callable[[Any], Callable[..., Speed]], model: Any, threads: int) -> None:
        context = get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, model, threads), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def run(self, batch: int, prompt_tokens: int, answer_tokens: int, *more: Any) -> Speed:
        self._pipe.send((batch, prompt_tokens, answer_tokens, *more))
        answer = self._answer()
        assert answer is not None
        return answer

    def close(self) -> None:
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(END_SECONDS)
        self._process.kill()

    def _answer(self) -> Speed | None:
        try:
            answer: Speed | None = self._pipe.recv()
        except EOFError:
            raise click.ClickException(f"{self._name} ended; its own words are above") from None
        return answer


@contextmanager
def model_of(dtype: str) -> Iterator[Model]:
    with tempfile.TemporaryDirectory(prefix="premoe-bench-") as name:
        folder = Path(name)
        write_checkpoint(folder / "checkpoint", dtype)
        pack = write_pack(open_source(str(folder / "checkpoint")), open_store((folder / "store").as_uri())).url
        source = open_pack(pack)
        export(source, cut_to(source, f"{TOP_K}/{EIGHTH}"), str(folder / "exported"))
        yield Model(folder / "checkpoint", folder / "exported", pack, dtype)


def measure(report: Report, peers: Mapping[str, Peer], rounds: int) -> None:
    for batch in BATCHES:
        runs = {name: partial(_decode, peer, batch) for name, peer in peers.items()}
        compare(report, f"decode_{batch}", runs, rounds, tokens=1)
    runs = {name: partial(_prefill, peer) for name, peer in peers.items()}
    compare(report, f"prefill_{PREFILL_TOKENS}", runs, rounds, tokens=PREFILL_TOKENS)


def _decode(peer: Peer, batch: int) -> float:
    return peer.run(batch, PROMPT_TOKENS, ANSWER_TOKENS).decode


def _prefill(peer: Peer) -> float:
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
@click.option("--peer", "names", type=click.Choice(list(PEERS)), multiple=True, help="Only these; several times.")
@json_option
def main(rounds: int, dtype: str, threads: int, names: tuple[str, ...], json_file: Path | None) -> None:
    """Decoding at batch 1, 8 and 32 and one long prompt: vLLM over slots, as it comes, and others."""
    if find_spec("vllm") is None:
        raise click.ClickException("vLLM is not installed here; `make bench-serve` runs this where it is")
    os.environ.update(ENVIRONMENT, VLLM_LOGGING_LEVEL="ERROR", OMP_NUM_THREADS=str(threads))
    # As vLLM runs where nobody sets it: a thread that waits spins for a moment, then sleeps.
    os.environ.pop("OMP_WAIT_POLICY", None)
    with model_of(dtype) as model, ExitStack() as stack:
        report = Report(
            "vLLM over slots against vLLM as it comes, exported, hf and transformers",
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
        for name in names or PEERS:
            click.echo(f"starting {name}", err=True)
            peers[name] = Peer(name, PEERS[name], model, threads)
            stack.callback(peers[name].close)
        measure(report, peers, rounds)
    report.finish(json_file)


if __name__ == "__main__":
    main()
