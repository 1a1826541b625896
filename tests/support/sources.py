"""An expert source straight from a checkpoint folder, in memory, with counters and faults for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import blake3
import torch
from safetensors.torch import load_file, save

from premoe_runtime.families.registry import read_model
from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import BLOB_ALIGNMENT, ExpertLayer, Manifest, Origin, PackFile
from premoe_runtime.packs.layout import blob_layout

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class MemorySource:
    """Implements ``ExpertSource`` over blobs built from a Hugging Face folder.

    ``failing``: experts whose read raises Unavailable. ``corrupt``: experts that arrive with one byte flipped.
    ``on_blob`` runs after each delivered blob. ``blobs_read``, ``file_bytes``, ``blob_bytes_read`` count reads.
    """

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.blobs: dict[ExpertId, bytes] = {}
        self.failing: set[ExpertId] = set()
        self.corrupt: set[ExpertId] = set()
        self.on_blob: Callable[[ExpertId], None] = lambda expert: None
        self.blobs_read: list[ExpertId] = []
        self.file_bytes = 0
        self._manifest = self._build(folder)

    @property
    def blob_bytes_read(self) -> int:
        return len(self.blobs_read) * self._manifest.layout.blob_bytes

    def manifest(self) -> Manifest:
        return self._manifest

    def read_file(self, path: str) -> bytes:
        self.file_bytes += len(self.files[path])
        return self.files[path]

    def fetch(
        self,
        experts: Sequence[ExpertId],
        into: Callable[[ExpertId], memoryview],
        done: Callable[[ExpertId, bool], None],
        cancelled: Callable[[], bool] = lambda: False,
        urgent: Callable[[], bool] = lambda: True,
    ) -> None:
        for expert in experts:
            if cancelled():
                return
            target = into(expert)
            half = len(target) // 2
            target[:half] = self.blobs[expert][:half]
            if expert in self.failing:
                raise Unavailable(f"no answer while reading {expert}")
            target[half:] = self.blobs[expert][half:]
            if expert in self.corrupt:
                target[half] ^= 1
            self.blobs_read.append(expert)
            done(expert, False)
            self.on_blob(expert)

    def _build(self, folder: Path) -> Manifest:
        model = read_model((folder / "config.json").read_bytes())
        tensors: dict[str, torch.Tensor] = {}
        shards = sorted(folder.glob("*.safetensors"))
        for shard in shards:
            tensors |= load_file(shard)
        model = model.cut_to([len(tensors[name]) for name in model.routers])
        first = {model.expert_name(0, 0, model.expert_tensors[0]), *model.fused_names(0, model.spec.fields[0])}
        dtype = next(tensors[name] for name in first if name in tensors).dtype
        layout = blob_layout(model, _NAMES[dtype])
        fields, blob_bytes = layout.fields, layout.blob_bytes
        expert_names = set()
        layers = []
        for layer, block in enumerate(model.blocks):
            digests = []
            for expert in range(model.layer_experts[layer]):
                blob = bytearray(blob_bytes)
                for field, spec in zip(fields, model.spec.fields, strict=True):
                    rows = sorted((t for t in model.expert_tensors if t.field == field.name), key=lambda t: t.row)
                    names = [model.expert_name(layer, expert, t) for t in rows]
                    fused = [name for name in model.fused_names(layer, spec) if name in tensors]
                    expert_names |= {*names, *fused}
                    whole = tensors[fused[0]][expert] if fused else torch.cat([tensors[name] for name in names])
                    whole = whole.T if fused and spec.transposed else whole
                    if fused and spec.interleaved:
                        whole = torch.cat([whole[part :: len(names)] for part in range(len(names))])
                    assert tuple(whole.shape) == field.shape
                    data = whole.contiguous().view(torch.uint8).numpy().tobytes()
                    blob[field.offset : field.offset + len(data)] = data
                self.blobs[ExpertId(layer, expert)] = bytes(blob)
                digests.append(blake3.blake3(bytes(blob)).hexdigest())
            layers.append(
                ExpertLayer(
                    block=block,
                    file=f"experts/layer-{layer:03d}.safetensors",
                    data_offset=BLOB_ALIGNMENT,
                    stride=blob_bytes,
                    digests=tuple(digests),
                )
            )
        for shard in shards:
            names = [name for name in load_file(shard) if name not in expert_names]
            if names:
                self.files[f"skeleton/{shard.name}"] = save({name: tensors[name] for name in names})
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
                self.files[f"skeleton/{path.relative_to(folder)}"] = path.read_bytes()
        manifest = Manifest(
            model_id="",
            weights_id=blake3.blake3(b"".join(self.blobs.values())).hexdigest(),
            family=model.family,
            router=model.router,
            top_k=model.top_k,
            num_layers=len(layers),
            num_experts=model.num_experts,
            hidden_size=model.hidden_size,
            dtype=_NAMES[dtype],
            layout=layout,
            layers=tuple(layers),
            skeleton=tuple(
                PackFile(path=path, num_bytes=len(data), digest=blake3.blake3(data).hexdigest())
                for path, data in sorted(self.files.items())
            ),
            checks=PackFile(path="checks.safetensors", num_bytes=0, digest=""),
            origin=Origin(url=folder.as_uri()),
        )
        manifest = manifest.model_copy(update={"model_id": manifest.content_id()})
        manifest.check()
        return manifest
