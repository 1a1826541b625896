"""Packs whose weights nobody can compute with."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store
from support.tiny import tiny_checkpoint

ROUTER = "model.layers.1.mlp.gate.weight"


def broken_router(folder: Path, value: float) -> Path:
    """A store with the pack of a tiny model, in whose second router one expert's row is ``value``."""
    for shard in tiny_checkpoint(folder).glob("*.safetensors"):
        tensors = load_file(shard)
        if ROUTER in tensors:
            tensors[ROUTER][3] = value
            save_file(tensors, shard, metadata={"format": "pt"})
    store = folder / "store"
    write_pack(open_source(str(folder / "qwen3_moe")), open_store(store.as_uri()))
    return store
