"""A worker's cold start from S3 at a quarter of the experts, against loading the whole model with the quickest loader.

    python benchmarks/cold_start.py [--layers 8 --experts 64 --slots 16] [--rounds 3] [--json FILE]

Puts the pack of a random Qwen3-MoE of at least 1.5 GB into a versitygw. In turns, each in a process of its own whose
imports are not counted: a worker's way (skeleton, slots, and a random quarter of each layer's experts, digests checked)
through an expert store with an empty cache; the same without a store, out of object storage; and every tensor of the
same files by Run:ai's model streamer, at each concurrency asked for, of which the quickest counts. What the store reads
of S3 is to be at most skeleton + subset + 1 %.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
from _data_ours import STORE
from _data_swap import object_bytes
from _report import Report, json_option
from memory import qwen3_moe, write_pack
from support.processes import serving
from support.servers import S3Server, s3_server

from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.place import pack_folder
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.storage import open_store

LOADERS = Path(__file__).parents[1] / ".loaders"
WANTED_RATIO = 3.0
CONCURRENCY = ("4", "8", "16")


def child(where: str, model_id: str, slots: int) -> None:
    """A worker's way from nothing to the last expert; prints seconds and bytes as one JSON line."""
    from premoe_worker.adapters.expert_store import open_source

    from premoe_runtime.engines.hf.model import load_slot_model
    from premoe_runtime.formats.ids import ExpertId
    from premoe_runtime.packs.reader import PackReader
    from premoe_runtime.residency.swap import bring

    def load(source: ExpertSource) -> float:
        model = load_slot_model(source, slots=slots)
        at_skeleton = time.perf_counter()
        order = np.random.default_rng(1).random((model.store.num_layers, model.store.num_experts)).argsort(axis=1)
        kept = order < slots
        bring(model.store, source, frozenset(ExpertId(*pair) for pair in np.argwhere(kept).tolist()), {0: kept})
        return at_skeleton

    started = time.perf_counter()
    if "://" in where:
        at_skeleton = load(PackReader(open_store(where), pack_folder(model_id)))
    else:
        with open_source(where, None, model_id) as source:
            at_skeleton = load(source)
    ended = time.perf_counter()
    click.echo(json.dumps({"seconds": ended - started, "skeleton_s": at_skeleton - started}))


def whole(manifest: Manifest, s3: S3Server, concurrency: str) -> float:
    """Seconds of the streamer for all tensors of the pack's files."""
    root = f"{s3.url}/{pack_folder(manifest.model_id)}"
    names = [file.path for file in manifest.skeleton if file.path.endswith(".safetensors")]
    files = [f"{root}/{name}" for name in (*names, *(layer.file for layer in manifest.layers))]
    found = _run(
        [str(Path(__file__).with_name("_whole_model.py")), *files],
        {
            **s3.env,
            "PYTHONPATH": str(LOADERS),
            "RUNAI_STREAMER_CONCURRENCY": concurrency,
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "AWS_EC2_METADATA_DISABLED": "true",
        },
    )
    return found["seconds"]


def ours(where: str, manifest: Manifest, slots: int, environment: Mapping[str, str]) -> float:
    command = [__file__, "--child", where, "--model-id", manifest.model_id, "--slots", str(slots)]
    return _run(command, {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **environment})["seconds"]


def through_store(manifest: Manifest, s3: S3Server, slots: int) -> tuple[float, float]:
    """Seconds by way of a store that starts with an empty cache, and the bytes that it read of S3 for experts."""
    flags = ["--store-url", s3.url, "--http-port", "0", "--metrics-port", "0"]
    with serving(STORE, flags, s3.env) as store:
        seconds = ours(store.address, manifest, slots, {})
        return seconds, object_bytes(str(store.ready["metrics"]))


def _run(command: list[str], environment: Mapping[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def publish(folder: Path, manifest: Manifest, s3: S3Server) -> None:
    """Move a pack's files into the bucket, by the API: versitygw gives files that it did not write no ETag."""
    os.environ |= s3.env
    target = open_store(s3.url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with target.writer(f"{pack_folder(manifest.model_id)}/{path.relative_to(folder)}") as out:
                with path.open("rb") as data:
                    while part := data.read(8 << 20):
                        out.write(part)
    shutil.rmtree(folder)


@click.command()
@click.option("--layers", default=8, show_default=True)
@click.option("--experts", default=64, show_default=True)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--width", default=512, show_default=True, help="Rows of an expert's gate projection.")
@click.option("--slots", default=16, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--child", "child_of", hidden=True)
@click.option("--model-id", hidden=True, default="")
@json_option
def main(
    layers: int,
    experts: int,
    hidden: int,
    width: int,
    slots: int,
    rounds: int,
    child_of: str | None,
    model_id: str,
    json_file: Path | None,
) -> None:
    """Seconds from nothing to the last expert, and bytes read, against their targets."""
    if child_of is not None:
        child(child_of, model_id, slots)
        return
    report = Report("cold start from S3", {"layers": layers, "experts": experts, "slots": slots, "rounds": rounds})
    with tempfile.TemporaryDirectory(prefix="premoe-cold-") as name, s3_server(Path(name)) as s3:
        manifest = write_pack(Path(name) / "pack", qwen3_moe(layers, experts, hidden, width))
        publish(Path(name) / "pack", manifest, s3)
        measure(report, manifest, s3, slots, rounds)
    report.finish(json_file)


def measure(report: Report, manifest: Manifest, s3: S3Server, slots: int, rounds: int) -> None:
    subset = slots * manifest.num_layers * manifest.layout.blob_bytes
    seconds: dict[str, list[float]] = {}
    read = 0.0
    loaders = CONCURRENCY if (LOADERS / ".installed").exists() else ()
    for _ in range(rounds):
        took, read = through_store(manifest, s3, slots)
        seconds.setdefault("through a store", []).append(took)
        seconds.setdefault("without a store", []).append(ours(s3.url, manifest, slots, s3.env))
        for concurrency in loaders:
            seconds.setdefault(f"whole model, streamer at {concurrency}", []).append(whole(manifest, s3, concurrency))
    for name, found in seconds.items():
        report.samples(name, found)
    report.values["experts read of S3"] = {"bytes": read, "over subset": read / subset, "wanted": 1.01}
    if loaders:
        quickest = min(statistics.median(found) for name, found in seconds.items() if name.startswith("whole"))
        for name in ("through a store", "without a store"):
            ratio = quickest / statistics.median(seconds[name])
            report.values[f"whole model over {name}"] = {"ratio": ratio, "wanted": WANTED_RATIO}
    else:
        report.values["whole model"] = "left out: the streamer is not installed (make bench-cold)"


if __name__ == "__main__":
    main()
