"""Memory of a worker-like process that keeps a quarter of the experts, and the bytes it read from the store.

    python benchmarks/memory.py [--layers 8 --experts 64 --slots 16] [--json FILE]

Writes the pack of a random Qwen3-MoE of at least 1.5 GB into a temporary folder, layer by layer, without building the
model. Two child processes load it from there: one stops at the skeleton, one brings ``slots`` experts a layer; both run
one forward. Target: the difference of their resident memory is at most 1.15 x resident blobs + staging, and the bytes
read are at most skeleton + resident blobs + 1 %.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import blake3
import click
import numpy as np
from _report import Report, json_option

from premoe_runtime.families.registry import read_model
from premoe_runtime.formats.manifest import ExpertLayer, Manifest, Origin, PackFile
from premoe_runtime.formats.safetensors import encode_header
from premoe_runtime.packs import layout as lay
from premoe_runtime.packs.checks import checks_file, piece_checks

PROMPT_TOKENS = 64


def random_weights(rng: np.random.Generator, num_bytes: int) -> bytes:
    """bf16 values of magnitude 1/128 to 1/32: random signs and mantissas, no NaN."""
    bits = rng.integers(0, 1 << 16, num_bytes // 2, dtype=np.uint16)
    return ((bits & np.uint16(0x80FF)) | np.uint16(0x3C00)).tobytes()


def write_pack(folder: Path, config: dict[str, object], more: Mapping[str, bytes] = {}) -> Manifest:
    """A pack folder (``models/<id>`` layout) of random weights; one blob in memory at a time.

    ``more``: other files of its skeleton, a tokenizer's for one.
    """
    text = json.dumps(config).encode()
    model = read_model(text)
    layout = lay.blob_layout(model, "BF16")
    rng = np.random.default_rng(0)

    def put(path: str, parts: Iterator[bytes]) -> PackFile:
        target, digest, size = folder / path, blake3.blake3(), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            for part in parts:
                out.write(part)
                digest.update(part)
                size += len(part)
        return PackFile(path=path, num_bytes=size, digest=digest.hexdigest())

    def skeleton() -> Iterator[bytes]:
        shapes = {name: spec.shape for name, spec in model.skeleton.items() if not spec.optional}
        sizes = {name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}
        yield encode_header((name, "BF16", shape) for name, shape in shapes.items())
        for size in sizes.values():
            yield random_weights(rng, size)

    def experts(digests: list[str], sums: list[tuple[int, ...]]) -> Iterator[bytes]:
        yield header
        for _ in range(model.num_experts):
            blob = random_weights(rng, layout.blob_bytes)
            digests.append(blake3.blake3(blob).hexdigest())
            sums.append(piece_checks(blob))
            yield blob

    header = lay.expert_file_header(model.num_experts, layout.blob_bytes)
    files = [put("skeleton/model-00001-of-00001.safetensors", skeleton()), put("skeleton/config.json", iter([text]))]
    files += [put(f"skeleton/{name}", iter([data])) for name, data in more.items()]
    layers, checks = [], []
    for index, block in enumerate(model.blocks):
        digests: list[str] = []
        sums: list[tuple[int, ...]] = []
        put(lay.layer_file(index), experts(digests, sums))
        checks.append(sums)
        layers.append(
            ExpertLayer(
                block=block,
                file=lay.layer_file(index),
                data_offset=len(header),
                stride=layout.blob_bytes,
                digests=tuple(digests),
            )
        )
    manifest = Manifest(
        model_id="",
        weights_id=blake3.blake3(text).hexdigest(),
        family=model.family,
        router=model.router,
        top_k=model.top_k,
        num_layers=len(model.blocks),
        num_experts=model.num_experts,
        hidden_size=model.hidden_size,
        dtype="BF16",
        layout=layout,
        layers=tuple(layers),
        skeleton=tuple(files),
        checks=put(lay.CHECKS_FILE, iter([checks_file(checks, layout.blob_bytes)])),
        origin=Origin(url="", tool="benchmarks/memory.py"),
    )
    manifest = manifest.model_copy(update={"model_id": manifest.content_id()})
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return manifest


def qwen3_moe(layers: int, experts: int, hidden: int, width: int) -> dict[str, object]:
    """A config.json; ``width``: rows of an expert's gate projection."""
    return {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": 4 * width,
        "moe_intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "vocab_size": 32_000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def child(url: str, slots: int, resident: bool) -> None:
    """What a worker does at start; prints its memory and the bytes it read as one JSON line."""
    import torch

    from premoe_runtime.engines.hf.model import load_slot_model
    from premoe_runtime.formats.ids import ExpertId
    from premoe_runtime.packs.reader import open_pack
    from premoe_runtime.residency.plan import STAGING_BYTES
    from premoe_runtime.residency.swap import bring

    source = open_pack(url)
    model = load_slot_model(source, slots=slots)
    if resident:
        # A random subset per layer, as a pattern's is.
        order = np.random.default_rng(1).random((model.store.num_layers, model.store.num_experts)).argsort(axis=1)
        kept = order < slots
        bring(model.store, source, frozenset(ExpertId(*pair) for pair in np.argwhere(kept).tolist()), {0: kept})
    with torch.inference_mode():
        model.model(torch.arange(PROMPT_TOKENS)[None])
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = {
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bytes_read": source.bytes_read,
        "resident_bytes": len(model.store.resident()) * model.store.shape.blob_bytes,
        "staging_bytes": STAGING_BYTES if resident else 0,
    }
    click.echo(json.dumps(found))


def measure(url: str, slots: int, *, resident: bool) -> dict[str, int]:
    command = [sys.executable, __file__, "--child", url, "--slots", str(slots)] + ["--resident"] * resident
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr.strip().splitlines()[-1])
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.option("--layers", default=8, show_default=True)
@click.option("--experts", default=64, show_default=True)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--width", default=512, show_default=True, help="Rows of an expert's gate projection.")
@click.option("--slots", default=16, show_default=True)
@click.option("--child", "child_url", hidden=True)
@click.option("--resident", is_flag=True, hidden=True)
@json_option
def main(
    layers: int,
    experts: int,
    hidden: int,
    width: int,
    slots: int,
    child_url: str | None,
    resident: bool,
    json_file: Path | None,
) -> None:
    """Resident memory over skeleton-only, and bytes read, against their targets."""
    if child_url is not None:
        child(child_url, slots, resident)
        return
    config = qwen3_moe(layers, experts, hidden, width)
    with tempfile.TemporaryDirectory(prefix="premoe-memory-") as name:
        folder = Path(name) / "models" / "random"
        manifest = write_pack(folder, config)
        folder = folder.rename(folder.with_name(manifest.model_id))
        bare = measure(folder.as_uri(), slots, resident=False)
        full = measure(folder.as_uri(), slots, resident=True)
    model_bytes = manifest.experts_bytes + manifest.skeleton_bytes
    over = full["rss_bytes"] - bare["rss_bytes"]
    allowed = 1.15 * full["resident_bytes"] + full["staging_bytes"]
    read_allowed = 1.01 * (manifest.skeleton_bytes + full["resident_bytes"])
    shape = {"layers": layers, "experts": experts, "slots": slots, "blob_bytes": manifest.layout.blob_bytes}
    report = Report("memory at a quarter of the experts", shape | {"model_bytes": model_bytes})
    report.values |= {
        "skeleton bytes": manifest.skeleton_bytes,
        "resident blob bytes": full["resident_bytes"],
        "staging bytes": full["staging_bytes"],
        "rss skeleton only": bare["rss_bytes"],
        "rss resident": full["rss_bytes"],
        "rss over skeleton only": over,
        "over / resident": over / full["resident_bytes"],
        "allowed": allowed,
        "within target": over <= allowed,
        "peak rss resident": full["peak_bytes"],
        "bytes read": full["bytes_read"],
        "bytes read allowed": read_allowed,
        "read within target": full["bytes_read"] <= read_allowed,
    }
    report.finish(json_file)


if __name__ == "__main__":
    main()
