"""What a method makes of a pack, and the pack that is written of it: layer by layer, resumable."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from math import prod

import blake3
from torch import Tensor

from premoe_runtime.compress.config import resized
from premoe_runtime.compress.plan import Plan, experts_of, router_of
from premoe_runtime.compress.weights import CONFIG_FILE, ExpertWeights, PackWeights, RouterWeights, stored, to_blobs
from premoe_runtime.engines.hf.skeleton import bytes_of
from premoe_runtime.families.registry import read_model
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.manifest import DTYPE_BYTES, BlobLayout
from premoe_runtime.packs.contents import TensorInfo
from premoe_runtime.packs.place import pack_folder
from premoe_runtime.packs.progress import Progress
from premoe_runtime.packs.source import COMPRESSION_FILE, PACKER_VERSION
from premoe_runtime.packs.staging import Staging
from premoe_runtime.packs.writer import PackResult, write_material
from premoe_runtime.storage import Store


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """A smaller model, none of it computed yet.

    ``experts``: of every layer; ``width``: neurons of each. ``router`` and ``weights`` give a layer's. ``tensors``:
    other skeleton tensors that change, by name. ``key`` is another one whenever any of that is; ``facts`` go into the
    provenance.
    """

    experts: tuple[int, ...]
    width: int
    router: Callable[[int], RouterWeights]
    weights: Callable[[int], ExpertWeights]
    key: str
    facts: Mapping[str, object] = field(default_factory=dict)
    tensors: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)


def planned(plan: Plan, old: PackWeights, facts: Mapping[str, object]) -> Compressed:
    """What a plan makes of a pack's weights."""
    return Compressed(
        experts=plan.experts,
        width=plan.width,
        router=lambda layer: router_of(plan.layers[layer], old.router(layer)),
        weights=lambda layer: experts_of(plan.layers[layer], old.experts(layer)),
        key=plan.digest,
        facts=facts,
    )


def write(
    old: PackWeights, new: Compressed, facts: Mapping[str, object], store: Store, progress: Progress
) -> PackResult:
    """Write the pack of ``new`` to ``models/<model_id>`` of ``store``; the same again finds it there, or goes on.

    ``facts``: the method, its settings and data, for the provenance. Raises what ``resized`` raises, Exhausted, and
    Conflict when another process writes the same.
    """
    material = CompressedMaterial(old, new, facts)
    staging = Staging(store, material.key)
    if (manifest := staging.published()) is not None:
        staging.clear()
        return PackResult(manifest, store.at(pack_folder(manifest.model_id)), already_packed=True)
    return write_material(material, staging, progress)


class CompressedMaterial:
    """A ``packs.material.Material``: the old pack's tensors, and the new model's where they differ."""

    def __init__(self, old: PackWeights, new: Compressed, facts: Mapping[str, object]) -> None:
        self._old, self._new = old, new
        self._config = resized(
            old.config, old.model, experts=max(new.experts), width=new.width, top_k=min(old.model.top_k, *new.experts)
        )
        self._model = read_model(self._config).cut_to(new.experts)
        self._facts = {
            "tool": f"premoe {version('premoe')}",
            "model_id": old.manifest.model_id,
            "weights_id": old.manifest.weights_id,
            "origin": old.manifest.origin.url,
            "revision": old.manifest.origin.revision,
            **facts,
            "experts": list(new.experts),
            "width": new.width,
            **new.facts,
        }
        self._changed = self._replaced()
        self._lock = threading.Lock()
        self._layer: tuple[int, Tensor | None] = (-1, None)
        self._tensor: tuple[str, memoryview] = ("", memoryview(b""))

    @property
    def key(self) -> str:
        """Names what is written: the old model, what was done to it, the packer's version."""
        text = json.dumps([PACKER_VERSION, self._new.key, self._facts], sort_keys=True, separators=(",", ":"))
        return blake3.blake3(text.encode()).hexdigest()[:32]

    @property
    def model(self) -> MoeModel:
        return self._model

    @property
    def dtype(self) -> str:
        return self._old.manifest.dtype

    @property
    def dtypes(self) -> Mapping[str, str]:
        return {one.name: one.dtype for one in self._old.manifest.layout.fields}

    @property
    def origin(self) -> str:
        return f"{self._facts['method']} of {self._old.manifest.origin.url or self._old.manifest.model_id}"

    @property
    def revision(self) -> str:
        return self._old.manifest.origin.revision

    @property
    def where(self) -> str:
        return self._old.reader.url

    @property
    def skeleton_files(self) -> Sequence[str]:
        paths = [file.path.removeprefix("skeleton/") for file in self._old.manifest.skeleton]
        return sorted({*(path for path in paths if not path.endswith(".safetensors")), COMPRESSION_FILE})

    def file(self, path: str) -> bytes:
        """As in the old pack, but for the config and the provenance, which keeps that of earlier compressions."""
        if f"skeleton/{path}" == CONFIG_FILE:
            return self._config
        if path != COMPRESSION_FILE:
            return self._old.reader.read_file(f"skeleton/{path}")
        facts = dict(self._facts)
        if any(file.path == f"skeleton/{path}" for file in self._old.manifest.skeleton):
            facts["before"] = json.loads(self._old.reader.read_file(f"skeleton/{path}"))
        return json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n"

    def skeleton(self) -> Sequence[TensorInfo]:
        return [
            _shaped(self._old.tensors[name], self._model.skeleton[name].shape)
            for name in sorted(self._model.skeleton)
            if name in self._old.tensors
        ]

    def read_tensor(self, tensor: TensorInfo, start: int, room: memoryview) -> None:
        if tensor.name not in self._changed:
            self._old.reader.store.read_into(tensor.file, tensor.offset + start, [room])
            return
        with self._lock:
            if self._tensor[0] != tensor.name:  # a large one is written in many parts
                self._tensor = ("", memoryview(b""))
                self._tensor = tensor.name, stored(self._changed[tensor.name](), tensor.dtype)
            data = self._tensor[1]
        room[:] = data[start : start + len(room)]

    def read_expert(self, layer: int, expert: int, room: memoryview, layout: BlobLayout) -> None:
        """A layer is computed when the first of its experts is asked for."""
        with self._lock:
            if self._layer[0] != layer:
                self._layer = (-1, None)  # two layers are never in memory
                self._layer = layer, to_blobs(self._new.weights(layer), layout)
            blobs = self._layer[1]
        assert blobs is not None
        room[:] = bytes_of(blobs[expert])

    def _replaced(self) -> dict[str, Callable[[], Tensor]]:
        changed = dict(self._new.tensors)
        for layer, (weight, biases) in enumerate(zip(self._model.routers, self._model.router_biases, strict=True)):
            changed[weight] = partial(self._router, layer, 0)
            changed |= {name: partial(self._router, layer, number) for number, name in enumerate(biases, start=1)}
        return changed

    def _router(self, layer: int, number: int) -> Tensor:
        router = self._new.router(layer)
        return (router.weight, *router.biases)[number]


def _shaped(tensor: TensorInfo, shape: tuple[int, ...]) -> TensorInfo:
    return replace(tensor, shape=shape, num_bytes=DTYPE_BYTES[tensor.dtype] * prod(shape))
