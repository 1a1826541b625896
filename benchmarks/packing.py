"""Packing of DeepSeek-R1-shaped FP8 shards, beside a plain copy of the same bytes.

    python benchmarks/packing.py [--experts 32 --shards 2 --rounds 5] [--json FILE]

Writes a checkpoint of one MoE layer with R1's experts (2048 x 7168, F8_E4M3 with a scale a block of 128 x 128; an
expert's tensors lie in shards at random) into a temporary folder. Each round packs it into an empty store and copies
its shards into another, both flushed to the disk; what is read lies in the page cache for both. Target: packing at 0.8
of the copy's rate. The peak of main memory is that of a process that only packs.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from _report import Report, interleaved, json_option

from premoe_runtime.families.registry import read_model
from premoe_runtime.families.stored import as_configured
from premoe_runtime.formats.safetensors import encode_header, tensor_bytes
from premoe_runtime.packs.checkpoint import INDEX_FILE
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore

TARGET = 0.8


def config(experts: int) -> dict[str, object]:
    """R1's own but for what does not shape its experts, of which there are fewer."""
    return {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 2048,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 0,
        "num_hidden_layers": 1,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 4,
        "topk_group": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 1024,
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
    }


def write_checkpoint(folder: Path, experts: int, shards: int) -> int:
    """Random tensors, each in a random shard. Returns the bytes of all shards."""
    text = json.dumps(config(experts)).encode()
    model, rng = as_configured(read_model(text)), np.random.default_rng(0)
    tensors = {
        name: (one.dtypes[0] if one.dtypes else "F32" if one.float32 else "BF16", one.shape)
        for name, one in model.skeleton.items()
    }
    own = {field.name: field.dtypes[0] for field in model.fields}
    for expert in range(experts):
        for part in model.expert_tensors:
            tensors[model.expert_name(0, expert, part)] = (own[part.field], part.shape)
    files = [f"model-{index + 1:05d}-of-{shards:05d}.safetensors" for index in range(shards)]
    places = {name: files[int(rng.integers(shards))] for name in sorted(tensors)}
    folder.mkdir()
    for file in files:
        names = [name for name, place in places.items() if place == file]
        with (folder / file).open("wb") as out:
            out.write(encode_header((name, *tensors[name]) for name in names))
            for name in names:
                dtype, shape = tensors[name]
                out.write(rng.random(shape, np.float32).tobytes() if dtype == "F32" else _bits(rng, dtype, shape))
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_bytes(text)
    return sum((folder / file).stat().st_size for file in files)


def _bits(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> bytes:
    """Random numbers below 2; none of them is NaN."""
    bits = rng.integers(0, 256, tensor_bytes(dtype, shape), dtype=np.uint8)
    return (bits & np.uint8(0x3F)).tobytes()


def pack(checkpoint: Path, folder: Path) -> None:
    write_pack(open_source(str(checkpoint)), LocalStore(folder))


def copy(checkpoint: Path, folder: Path) -> None:
    """Every shard, as a store copies files."""
    store = LocalStore(checkpoint.parent)
    for shard in sorted(checkpoint.glob("*.safetensors")):
        store.copy(f"{checkpoint.name}/{shard.name}", f"{folder.name}/{shard.name}")


def peak_bytes(checkpoint: Path, folder: Path) -> int:
    """Of a process that packs and ends."""
    command = [sys.executable, __file__, "--child", str(checkpoint), str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@click.command()
@click.option("--experts", default=32, show_default=True, help="A multiple of 4, at least 16.")
@click.option("--shards", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--child", nargs=2, type=click.Path(path_type=Path), hidden=True)
@json_option
def main(experts: int, shards: int, rounds: int, child: tuple[Path, Path] | None, json_file: Path | None) -> None:
    """Seconds of packing and of copying, their rates, and the ratio against its target."""
    if child is not None:
        pack(*child)
        click.echo(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    with tempfile.TemporaryDirectory(prefix="premoe-packing-") as name:
        checkpoint = Path(name) / "checkpoint"
        num_bytes = write_checkpoint(checkpoint, experts, shards)

        def timed(run: str) -> float:
            folder = Path(name) / run
            begun = time.perf_counter()
            pack(checkpoint, folder) if run == "pack" else copy(checkpoint, folder)
            seconds = time.perf_counter() - begun
            shutil.rmtree(folder)
            return seconds

        timed("pack")  # imports, and the source into the page cache
        found = interleaved({run: lambda run=run: timed(run) for run in ("pack", "copy")}, rounds)  # type: ignore[misc]
        peak = peak_bytes(checkpoint, Path(name) / "peak")
    report = Report("packing FP8 shards", {"experts": experts, "shards": shards, "bytes": num_bytes})
    packing, copying = (report.samples(run, found[run], num_bytes=num_bytes) for run in ("pack", "copy"))
    report.values |= {
        "packing / copy": copying / packing,
        "target": TARGET,
        "within target": copying / packing >= TARGET,
        "peak rss of packing": peak,
    }
    report.finish(json_file)


if __name__ == "__main__":
    main()
