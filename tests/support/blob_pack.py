"""A pack made of random bytes: a true manifest over blobs that are no tensors, for whoever only moves them."""

from __future__ import annotations

import random

import blake3

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import (
    BlobField,
    BlobLayout,
    ExpertLayer,
    Manifest,
    Origin,
    PackFile,
    RouterSpec,
)
from premoe_runtime.packs.checks import checks_file, piece_checks
from premoe_runtime.packs.layout import CHECKS_FILE
from premoe_runtime.storage import Store

DATA_OFFSET = 4096


class BlobPack:
    """The manifest, and the bytes of every blob and file as they should arrive."""

    def __init__(self, manifest: Manifest, blobs: dict[ExpertId, bytes], files: dict[str, bytes]) -> None:
        self.manifest = manifest
        self.blobs = blobs
        self.files = files

    @property
    def model_id(self) -> str:
        return self.manifest.model_id

    def layer_path(self, layer: int) -> str:
        return f"models/{self.model_id}/{self.manifest.layers[layer].file}"

    def path(self, name: str) -> str:
        return f"models/{self.model_id}/{name}"


def write_blob_pack(
    store: Store, *, layers: int = 2, experts: int = 4, blob_bytes: int = 8192, file_bytes: int = 3 << 20, seed: int = 0
) -> BlobPack:
    """Write a pack of random blobs and one skeleton file into ``store``."""
    source = random.Random(seed)
    blobs = {
        ExpertId(layer, expert): source.randbytes(blob_bytes) for layer in range(layers) for expert in range(experts)
    }
    checks = [[piece_checks(blobs[ExpertId(layer, expert)]) for expert in range(experts)] for layer in range(layers)]
    files = {"skeleton/config.json": source.randbytes(file_bytes), CHECKS_FILE: checks_file(checks, blob_bytes)}
    described = {name: PackFile(path=name, num_bytes=len(data), digest=_digest(data)) for name, data in files.items()}
    manifest = Manifest(
        model_id="",
        weights_id=_digest(seed.to_bytes(8, "little")),
        family="qwen3_moe",
        router=RouterSpec(score="softmax", renormalise=True),
        top_k=1,
        num_layers=layers,
        num_experts=experts,
        hidden_size=16,
        dtype="U8",
        layout=BlobLayout(
            fields=(BlobField(name="gate_up", dtype="U8", shape=(blob_bytes,), offset=0),), blob_bytes=blob_bytes
        ),
        layers=tuple(
            ExpertLayer(
                block=layer,
                file=f"experts/layer-{layer:03d}.safetensors",
                data_offset=DATA_OFFSET,
                stride=blob_bytes,
                digests=tuple(_digest(blobs[ExpertId(layer, expert)]) for expert in range(experts)),
            )
            for layer in range(layers)
        ),
        skeleton=(described["skeleton/config.json"],),
        checks=described[CHECKS_FILE],
        origin=Origin(url="memory://random"),
    )
    manifest = manifest.model_copy(update={"model_id": manifest.content_id()})
    pack = BlobPack(manifest, blobs, files)
    for layer in range(layers):
        body = b"".join(blobs[ExpertId(layer, expert)] for expert in range(experts))
        store.put(pack.layer_path(layer), bytes(DATA_OFFSET) + body)
    for name, data in files.items():
        store.put(pack.path(name), data)
    store.put(pack.path("manifest.json"), manifest.to_json())
    return pack


def _digest(data: bytes) -> str:
    return blake3.blake3(data).hexdigest()
