"""All that wants one NVIDIA GPU, in one script of at most eight minutes.

    make bench-gpu [ARGS="--layers 8 --json FILE"]

- a swap of host memory into slots against one copy of as many page-locked bytes (``swap``);
- both engines, vLLM with CUDA graphs and without, on layers of Qwen3-30B-A3B with random weights (128 experts, top-8,
  bfloat16; as much of its vocabulary as of its layers): decoding at batch 1 and 32 with a quarter of the experts
  against all of them, and beside swaps that never end against none;
- both engines on a small model against stock ones that are masked from outside, and whether blocks of keys and values
  that hold no numbers are wiped.

Every part has processes of its own: one that fails is named, and the others go on. What no time is left for is named,
too, and what was stopped for it. ``--shape tiny --device cpu`` shows that the script works where there is no GPU; its
figures say nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import torch
from _gpu_engines import BATCHES, Agreement, Setting, by_front, exact_hf, exact_vllm, wiped
from _peers import Peer
from _report import Report, json_option
from memory import write_pack
from serving import compare
from throughput import VOCABULARY as WORDS
from throughput import write_tokenizer

from premoe_runtime.engines.vllm.engine import ENVIRONMENT

T = TypeVar("T")

LAYERS, VOCABULARY, PROMPT_TOKENS = 48, 151_936, 32
"""The first two are Qwen3-30B-A3B's."""
LEAST_S, CLOSE_S = 45.0, 60.0
"""No part is begun with less left; what runs is stopped so long before the end, as engines take a while to close."""
CLOSE = 0.1
"""Log probabilities that differ by more, in bfloat16 and kernels that add up otherwise, are another model's."""
TRANSIT = 64
"""Blobs in host memory for an engine that swaps once."""
RATIOS = (("quarter", "full"), ("swapping", "quarter"))
ENGINES = ("hf", "vllm")


class Shape(NamedTuple):
    """Fields of config.json; ``layers``: for time and memory, unless asked for; ``answer``: tokens that are timed."""

    config: Mapping[str, Any]
    layers: int
    answer: int
    blob_mib: float


_QWEN3 = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_REAL = {
    **_QWEN3,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
}
_TINY = {
    **_QWEN3,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 32,
}
SHAPES = {"qwen3-30b-a3b": Shape(_REAL, 8, 128, 9.0), "tiny": Shape(_TINY, 2, 16, 0.0625)}


class Parts:
    """Runs one after another, as long as there is time. ``failed``: their names. Of the main thread."""

    def __init__(self, report: Report, minutes: float) -> None:
        self._report, self._end = report, time.monotonic() + 60 * minutes - CLOSE_S
        self.failed: list[str] = []
        signal.signal(signal.SIGALRM, _out_of_time)

    def run(self, name: str, part: Callable[[], Any]) -> None:
        """What it returns is noted, and what it raises."""
        began = time.monotonic()
        if self._end - began < LEAST_S:
            self._report.values[name] = "left out: no time"
            return
        click.echo(name, err=True)
        signal.setitimer(signal.ITIMER_REAL, self._end - began)
        try:
            found = part()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except OutOfTime:
            found = "stopped: no time left"
        except Exception as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            found = f"WRONG: {type(error).__name__}: {' '.join(str(error).split())[-300:]}"
        if str(found).startswith("WRONG"):
            self.failed.append(name)
        self._report.values[name] = {"found": found, "seconds": round(time.monotonic() - began, 1)}


class OutOfTime(Exception):
    """The time of the whole script is over."""


def _out_of_time(*_: object) -> None:
    raise OutOfTime


def apart(function: Callable[..., T], *given: Any) -> T:
    """What a function returns that has a process of its own. Raises what it raises, BrokenProcessPool if it dies."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(function, *given)
        try:
            return found.result()
        except OutOfTime:
            for child in multiprocessing.active_children():
                child.kill()
            raise


def swap(device: str, shape: Shape, rounds: int) -> str:
    """Half of the slots of some layers, by the benchmark of that name."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "swap.json")
        options = {"device": device, "layers": 4, "slots": 32, "blob-mib": shape.blob_mib, "rounds": max(2, rounds)}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, str(Path(__file__).with_name("swap.py")), *words, "--json", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        values: dict[str, Any] = json.loads(out.read_text())["values"]
    rates = ", ".join(f"{key} {values[key]['gb_per_s']:.1f} GB/s" for key in ("swap", "torch_copy"))
    return f"{values['swap rate over torch_copy']:.2f} of one copy ({rates})"


def agreement(check: Callable[[str], Agreement], device: str) -> str:
    found = apart(check, device)
    text = f"log probabilities differ by {found.difference:.2g}, {found.alike:.0%} of the answers are alike"
    return text if found.difference <= CLOSE else f"WRONG: {text}"


def decode(report: Report, name: str, setting: Setting, shape: Shape, layers: int, rounds: int) -> str:
    """Tokens a second with all experts, with a quarter of them, and with that beside swaps; ratios."""
    experts = int(shape.config["num_experts"])
    quarter, swaps = experts // 4, list[int]()
    with ExitStack() as stack:
        peers = {}
        # Beside the quarter that runs is room for another one, and in host memory for three.
        sizes = {"full": (experts, experts, TRANSIT), "quarter": (2 * quarter, quarter, 3 * quarter * layers + TRANSIT)}
        for label, (slots, kept, host) in sizes.items():
            made = setting._replace(slots=slots, kept=kept, host=host)
            peers[label] = Peer(f"{name}, {label}", by_front, made, torch.get_num_threads())
            stack.callback(peers[label].close)

        def run(label: str, batch: int, swapping: bool) -> float:
            found = peers[label].run(batch, PROMPT_TOKENS, shape.answer, swapping)
            swaps.append(found.swaps)
            return found.decode

        for batch in BATCHES:
            runs = {label: partial(run, label, batch, False) for label in peers}
            runs["swapping"] = partial(run, "quarter", batch, True)
            compare(report, f"{name}, batch {batch}", runs, rounds, tokens=1, ratios=RATIOS)
    return f"{sum(swaps)} patterns swapped in meanwhile"


@contextmanager
def pack_of(shape: Shape, layers: int) -> Iterator[str]:
    """A pack of random weights, without a checkpoint before it. Its URL."""
    vocabulary = max(WORDS, -(-VOCABULARY * layers // LAYERS // 64) * 64)
    with tempfile.TemporaryDirectory(prefix="premoe-gpu-") as name:
        write_tokenizer(Path(name, "tokenizer"))
        files = {path.name: path.read_bytes() for path in sorted(Path(name, "tokenizer").iterdir())}
        folder = Path(name, "models", "random")
        manifest = write_pack(folder, {**shape.config, "num_hidden_layers": layers, "vocab_size": vocabulary}, files)
        yield folder.rename(folder.with_name(manifest.model_id)).as_uri()


@click.command()
@click.option("--shape", "shaped", type=click.Choice(list(SHAPES)), default="qwen3-30b-a3b", show_default=True)
@click.option("--layers", type=click.IntRange(1, LAYERS), help="Of the random model [default: 8; 2 of tiny].")
@click.option("--device", default="cuda", show_default=True)
@click.option("--engine", "engines", type=click.Choice(ENGINES), multiple=True, help="Only these; several times.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--minutes", type=click.FloatRange(min=0.1), default=8.0, show_default=True)
@json_option
def main(
    shaped: str,
    layers: int | None,
    device: str,
    engines: tuple[str, ...],
    rounds: int,
    minutes: float,
    json_file: Path | None,
) -> None:
    """Swaps, tokens a second, exactness and wiped blocks, on one GPU."""
    if device != "cpu" and not torch.cuda.is_available():
        raise click.ClickException(
            "there is no CUDA device here; --shape tiny --device cpu shows that the script works"
        )
    shape, engines = SHAPES[shaped], engines or ENGINES
    layers = layers or shape.layers
    if "vllm" in engines and find_spec("vllm") is None:
        raise click.ClickException("vLLM is not installed here; `make bench-gpu` runs this where it is, or --engine hf")
    os.environ.update(ENVIRONMENT, VLLM_LOGGING_LEVEL="ERROR")
    named = device if device == "cpu" else torch.cuda.get_device_name()
    report = Report("one GPU", {"device": named, "shape": shaped, "layers": layers, "rounds": rounds})
    parts = Parts(report, minutes)
    parts.run("swap", partial(swap, device, shape, rounds))
    with pack_of(shape, layers) as pack:
        for engine in engines:
            for graphs in (False, True) if engine == "vllm" and device != "cpu" else (False,):
                name = f"{engine}{', CUDA graphs' if graphs else ''}"
                setting = Setting(pack, engine, device, graphs)
                parts.run(name, partial(decode, report, name, setting, shape, layers, rounds))
            parts.run(f"{engine}, masked", partial(agreement, exact_hf if engine == "hf" else exact_vllm, device))
        if "vllm" in engines:
            spoilt = Setting(pack, "vllm", device, slots=int(shape.config["num_experts"]) // 4, host=TRANSIT)
            parts.run("wiped", partial(apart, wiped, spoilt))
    report.finish(json_file)
    if parts.failed:
        raise click.ClickException(f"failed: {', '.join(parts.failed)}")


if __name__ == "__main__":
    main()
