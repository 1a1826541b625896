"""Throughput with a quarter of the experts in slots, with all of them, and of plain transformers: in one process.

    python benchmarks/throughput.py [--rounds 7 --dtype float32 --threads 2] [--json FILE]

A random Qwen3-MoE (4 layers, 64 experts, top-8; about 200 MB of experts) is packed and loaded twice: with 16 slots a
layer under one pattern, and with 64 under the full one; the third variant is ``generate`` of the stock class with the
same weights. Decoding is timed from the moment when all of a batch have their first token, prefill up to it. Only
ratios should be quoted: pruning gives speed through fewer distinct experts touched, so it grows with the batch.
float32 is the default because a CPU without bf16 instructions spends its time emulating them, whatever the number of
experts. CPU seconds are noted beside the clock's: they tell more on a machine that is shared.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from _report import Report, interleaved, json_option
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

from premoe_runtime.engines.base import TokenEvent
from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.serving.front import Front, Handle
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import KeptPattern, Request
from premoe_runtime.storage import open_store

LAYERS, EXPERTS, TOP_K = 4, 64, 8
VOCABULARY, PROMPT_TOKENS, ANSWER_TOKENS, PREFILL_TOKENS = 8192, 32, 48, 128
BATCHES = (1, 8, 32)
QUARTER = EXPERTS // 4
HOST_BYTES = 64 << 20
WIDTHS = {"float32": 128, "bfloat16": 256}
"""Expert width per dtype: the same bytes."""


def write_checkpoint(folder: Path, dtype: str) -> None:
    """A random checkpoint of the stock class, with no end token: every answer has full length."""
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=WIDTHS[dtype],
        intermediate_size=1024,
        max_position_embeddings=1024,
        norm_topk_prob=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    model.save_pretrained(folder, max_shard_size="100MB")
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """One word per id; the text does not matter here."""
    tokenizer = Tokenizer(models.WordLevel({f"t{index}": index for index in range(VOCABULARY)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Moment:
    """Wall and CPU seconds of this process."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)


class Clock:
    """Sees every token of a batch: when it was sent, when all had their first token, and when the last one came."""

    def __init__(self, batch: int) -> None:
        self._starting = set(range(batch))
        self._running = set(range(batch))
        self._decoded = 0
        self._error: Exception | None = None
        self._done = threading.Event()
        self.sent = self.began = self.ended = Moment()

    def on_event(self, index: int, event: TokenEvent) -> None:
        """Called on the engine's thread only."""
        now = Moment()
        if index in self._starting:
            self._starting.remove(index)
            if not self._starting:
                self.began = now
        elif not self._starting:
            self._decoded += 1
        self._error = self._error or event.error
        if event.last:
            self._running.remove(index)
            if not self._running:
                self.ended = now
                self._done.set()

    def wait(self) -> Run:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return Run(self.sent, self.began, self.ended, self._decoded)


@dataclass(frozen=True, slots=True)
class Run:
    """A batch from sending it to all first tokens to the end; ``decoded``: tokens after these."""

    sent: Moment
    began: Moment
    ended: Moment
    decoded: int

    @property
    def prefill(self) -> float:
        return self.began.wall - self.sent.wall

    @property
    def decode(self) -> float:
        """Wall seconds per token of the batch."""
        return (self.ended.wall - self.began.wall) / self.decoded

    @property
    def decode_cpu(self) -> float:
        return (self.ended.cpu - self.began.cpu) / self.decoded


class Plain:
    """The stock class, as ``from_pretrained`` gives it."""

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype), trust_remote_code=False)
        self._model = model.eval().requires_grad_(False)
        self._random = np.random.default_rng(0)

    def run(self, batch: int, prompt_tokens: int, answer_tokens: int) -> Run:
        ids = torch.from_numpy(self._random.integers(0, VOCABULARY, (batch, prompt_tokens)))
        moments: list[Moment] = []

        def note(tokens: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
            moments.append(Moment())
            return torch.zeros(batch, dtype=torch.bool)

        sent = Moment()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=answer_tokens,
            pad_token_id=0,
            stopping_criteria=[note],
        )
        return Run(sent, moments[0], moments[-1], batch * (answer_tokens - 1))


class Served:
    """The packed model behind ``front``, with equally many slots a layer, under one pattern that fills them."""

    def __init__(self, front: Front, shape: SlotShape) -> None:
        self.front, self.slot_bytes = front, shape.device_bytes
        self.manifest, slots = shape.manifest, shape.slots[0]
        experts = np.tile(np.arange(self.manifest.num_experts), (self.manifest.num_layers, 1))
        self.order = np.random.default_rng(0).permuted(experts, axis=1)
        self.pattern = KeptPattern(f"{slots} experts", self.order < slots)
        self._serial = 0

    @classmethod
    def by_hf(cls, url: str, slots: int, context: int = 256) -> Served:
        source = open_pack(url)
        model = load_slot_model(source, slots=slots)
        arena = HostArena(model.store.shape.blob_bytes, HOST_BYTES)
        engine = HfEngine(model, arena, max_sequences=max(BATCHES), context=context, prefill_tokens=1024)
        return cls(Front(engine, model.store.shape, arena, source), model.store.shape)

    def run(self, batch: int, prompt_tokens: int, answer_tokens: int) -> Run:
        return self.run_under([self.pattern] * batch, prompt_tokens, answer_tokens)

    def run_under(self, patterns: Sequence[KeptPattern], prompt_tokens: int, answer_tokens: int) -> Run:
        """A request under each pattern, all sent at once."""
        clock = Clock(len(patterns))
        for index, pattern in enumerate(patterns):
            self.send(pattern, prompt_tokens, answer_tokens, partial(clock.on_event, index))
        return clock.wait()

    def send(
        self,
        pattern: KeptPattern,
        prompt_tokens: int,
        answer_tokens: int,
        on_event: Callable[[TokenEvent], None],
        on_started: Callable[[SwapReport], None] = lambda report: None,
    ) -> Handle:
        """A request with a prompt that nobody had before."""
        self._serial += 1
        random = np.random.default_rng(self._serial)
        prompt = tuple(int(token) for token in random.integers(0, VOCABULARY, prompt_tokens))
        request = Request(
            f"b{self._serial}", pattern, self.manifest.top_k, prompt, SamplingParams(max_tokens=answer_tokens)
        )
        return self.front.generate(request, on_started, on_event)


Variants = Mapping[str, Served | Plain]


@contextmanager
def variants(dtype: str) -> Iterator[dict[str, Served | Plain]]:
    with tempfile.TemporaryDirectory(prefix="premoe-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        write_checkpoint(folder / "checkpoint", dtype)
        packed = write_pack(open_source(str(folder / "checkpoint")), open_store((folder / "store").as_uri()))
        made: dict[str, Served | Plain] = {}
        for label, slots in (("quarter", QUARTER), ("full", EXPERTS)):
            served = Served.by_hf(packed.url, slots)
            stack.callback(served.front.close)
            made[label] = served
        yield made | {"plain": Plain(folder / "checkpoint", dtype)}


def measure(report: Report, models: Variants, rounds: int) -> None:
    for batch in BATCHES:
        decode_cpu: dict[str, list[float]] = {label: [] for label in models}

        def decode(label: str, batch: int = batch, cpu: dict[str, list[float]] = decode_cpu) -> float:
            run = models[label].run(batch, PROMPT_TOKENS, ANSWER_TOKENS)
            cpu[label].append(run.decode_cpu)
            return run.decode

        def prefill(label: str, batch: int = batch) -> float:
            return models[label].run(batch, PREFILL_TOKENS, 1).prefill

        compare(report, f"batch_{batch}_decode", {label: partial(decode, label) for label in models}, rounds)
        compare(report, f"batch_{batch}_prefill", {label: partial(prefill, label) for label in models}, rounds)
        cpu = {label: float(np.median(seconds[1:])) for label, seconds in decode_cpu.items()}
        report.values[f"batch_{batch}_decode_cpu_quarter_over_full"] = cpu["full"] / cpu["quarter"]
        report.values[f"batch_{batch}_decode_cpu_full_over_plain"] = cpu["plain"] / cpu["full"]


def compare(report: Report, name: str, runs: Mapping[str, Callable[[], float]], rounds: int) -> None:
    """Speeds against each other, by medians and by the fastest rounds, which a busy machine disturbs least."""
    interleaved(runs, 1)
    samples = interleaved(runs, rounds)
    medians = {label: report.samples(f"{name}_{label}", seconds) for label, seconds in samples.items()}
    fastest = {label: min(seconds) for label, seconds in samples.items()}
    for over, under in (("quarter", "full"), ("full", "plain")):
        report.values[f"{name}_{over}_over_{under}"] = medians[under] / medians[over]
        report.values[f"{name}_{over}_over_{under}_fastest"] = fastest[under] / fastest[over]


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--dtype", type=click.Choice(sorted(WIDTHS)), default="float32", show_default=True)
@click.option("--threads", default=None, type=int, help="Torch threads (default: torch's own).")
@json_option
def main(rounds: int, dtype: str, threads: int | None, json_file: Path | None) -> None:
    """Tokens/s at 25 % of the experts, at all of them, and of plain transformers, at batch 1, 8 and 32."""
    if threads:
        torch.set_num_threads(threads)
    with variants(dtype) as models:
        report = Report(
            "throughput at 25 % of the experts, at all, and of plain transformers",
            {
                "dtype": dtype,
                "layers": LAYERS,
                "experts": EXPERTS,
                "top_k": TOP_K,
                "slots": QUARTER,
                "slot_bytes": {label: m.slot_bytes for label, m in models.items() if isinstance(m, Served)},
                "torch_threads": torch.get_num_threads(),
            },
        )
        measure(report, models, rounds)
    report.finish(json_file)


if __name__ == "__main__":
    main()
