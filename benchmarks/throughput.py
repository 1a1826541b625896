"""Decode throughput with a quarter of the experts in slots, against all of them: same engine, same process.

    python benchmarks/throughput.py [--rounds 7 --dtype float32 --threads 2] [--json FILE]

A random Qwen3-MoE (4 layers, 64 experts, top-8; about 200 MB of experts) is packed and loaded twice: with 16 slots a
layer under one pattern, and with 64 under the full one. Only ratios should be quoted: pruning gives speed through fewer
distinct experts touched, so it grows with the batch. float32 is the default because a CPU without bf16 instructions
spends its time emulating them, whatever the number of experts. CPU seconds are noted beside the clock's: they tell more
on a machine that is shared.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from _report import Report, interleaved, json_option
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

from premoe_runtime.engines.base import SamplingParams, TokenEvent
from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.residency.host_tier import HostArena
from premoe_runtime.serving.front import Front
from premoe_runtime.serving.requests import FULL, KeptPattern, ManagedRequest
from premoe_runtime.storage import open_store

LAYERS, EXPERTS, TOP_K = 4, 64, 8
VOCABULARY, PROMPT_TOKENS, ANSWER_TOKENS = 8192, 32, 48
BATCHES = (1, 8, 32)
QUARTER = EXPERTS // 4
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


class Clock:
    """Sees every token of a batch; measures from the last sequence's first token to the very last token."""

    def __init__(self, batch: int) -> None:
        self._starting = set(range(batch))
        self._running = set(range(batch))
        self._decoded = 0
        self._began = (0.0, 0.0)
        self._ended = (0.0, 0.0)
        self._error: Exception | None = None
        self._done = threading.Event()

    def on_event(self, index: int, event: TokenEvent) -> None:
        """Called on the engine's thread only."""
        now = (time.perf_counter(), time.process_time())
        if index in self._starting:
            self._starting.remove(index)
            if not self._starting:
                self._began = now
        elif not self._starting:
            self._decoded += 1
        self._error = self._error or event.error
        if event.last:
            self._running.remove(index)
            if not self._running:
                self._ended = now
                self._done.set()

    def seconds_per_token(self) -> tuple[float, float]:
        """Waits for the end. Wall and CPU seconds per decoded token of the whole batch."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        wall, cpu = (end - begin for begin, end in zip(self._began, self._ended, strict=True))
        return wall / self._decoded, cpu / self._decoded


class Served:
    """The packed model with this many slots a layer."""

    def __init__(self, url: str, slots: int) -> None:
        source = open_pack(url)
        self._model = load_slot_model(source, slots=slots)
        store = self._model.store
        arena = HostArena(store.blob_bytes, 64 << 20)
        engine = HfEngine(self._model, arena, max_sequences=max(BATCHES), context=128, prefill_tokens=1024)
        self.front = Front(engine, store, arena, source)
        kept = np.random.default_rng(0).permuted(np.tile(np.arange(EXPERTS), (LAYERS, 1)), axis=1) < slots
        self._pattern = KeptPattern(FULL if slots == EXPERTS else "quarter", kept)
        self._serial = 0
        self.cpu_seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}

    @property
    def slot_bytes(self) -> int:
        return self._model.store.device_bytes

    def decode(self, batch: int) -> float:
        """Seconds per token while all of ``batch`` sequences decode."""
        clock = Clock(batch)
        for index in range(batch):
            self._serial += 1
            random = np.random.default_rng(self._serial)
            prompt = tuple(int(token) for token in random.integers(0, VOCABULARY, PROMPT_TOKENS))
            sampling = SamplingParams(max_tokens=ANSWER_TOKENS)
            request = ManagedRequest(f"b{self._serial}", self._pattern, TOP_K, prompt, sampling)
            self.front.generate(request, lambda report: None, partial(clock.on_event, index))
        wall, cpu = clock.seconds_per_token()
        self.cpu_seconds[batch].append(cpu)
        return wall


@contextmanager
def served_pair(dtype: str) -> Iterator[dict[str, Served]]:
    with tempfile.TemporaryDirectory(prefix="premoe-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        write_checkpoint(folder / "checkpoint", dtype)
        packed = write_pack(open_source(str(folder / "checkpoint")), open_store((folder / "store").as_uri()))
        pair = {}
        for label, slots in (("quarter", QUARTER), ("full", EXPERTS)):
            pair[label] = Served(packed.url, slots)
            stack.callback(pair[label].front.close)
        yield pair


def measure(report: Report, pair: dict[str, Served], rounds: int) -> None:
    for batch in BATCHES:
        variants = {label: partial(served.decode, batch) for label, served in pair.items()}
        interleaved(variants, 1)
        for served in pair.values():
            served.cpu_seconds[batch].clear()
        samples = interleaved(variants, rounds)
        medians = {label: report.samples(f"batch_{batch}_{label}", seconds) for label, seconds in samples.items()}
        cpu = {label: float(np.median(served.cpu_seconds[batch])) for label, served in pair.items()}
        for label, median in medians.items():
            report.values[f"batch_{batch}_{label}_tokens_per_s"] = 1 / median
        report.values[f"batch_{batch}_ratio"] = medians["full"] / medians["quarter"]
        report.values[f"batch_{batch}_cpu_ratio"] = cpu["full"] / cpu["quarter"]


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--dtype", type=click.Choice(sorted(WIDTHS)), default="float32", show_default=True)
@click.option("--threads", default=None, type=int, help="Torch threads (default: torch's own).")
@json_option
def main(rounds: int, dtype: str, threads: int | None, json_file: Path | None) -> None:
    """Tokens/s at 25 % of the experts and at all of them, at batch 1, 8 and 32."""
    if threads:
        torch.set_num_threads(threads)
    with served_pair(dtype) as pair:
        report = Report(
            "decode throughput at 25 % of the experts",
            {
                "dtype": dtype,
                "layers": LAYERS,
                "experts": EXPERTS,
                "top_k": TOP_K,
                "slots": QUARTER,
                "slot_bytes": pair["quarter"].slot_bytes,
                "slot_bytes_full": pair["full"].slot_bytes,
                "torch_threads": torch.get_num_threads(),
            },
        )
        measure(report, pair, rounds)
    report.finish(json_file)


if __name__ == "__main__":
    main()
