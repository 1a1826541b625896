"""Writing a pack: layer by layer, resumable, published at the very end; what goes into it comes from a ``Material``.

Memory: one blob being written, at most ``AHEAD_BYTES`` of blobs being read, and the store's write buffers, whatever
the material takes besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import blake3

from premoe_runtime.formats.errors import CorruptData, Exhausted
from premoe_runtime.formats.manifest import BlobLayout, ExpertLayer, Manifest, Origin, PackFile
from premoe_runtime.formats.pieces import piece_count
from premoe_runtime.formats.safetensors import encode_header
from premoe_runtime.packs import layout as lay
from premoe_runtime.packs.checkpoint import open_checkpoint
from premoe_runtime.packs.checks import checks_file
from premoe_runtime.packs.contents import LeftOut, TensorInfo
from premoe_runtime.packs.identity import Identity, identify
from premoe_runtime.packs.material import CheckpointMaterial, Material
from premoe_runtime.packs.place import pack_folder
from premoe_runtime.packs.progress import Progress, Silent
from premoe_runtime.packs.rooms import Rooms
from premoe_runtime.packs.source import Source
from premoe_runtime.packs.staging import LayerRecord, ShardRecord, Staging
from premoe_runtime.storage import Store

AHEAD_BYTES = 256 << 20
AHEAD_BLOBS = 4
CHUNK_BYTES = 32 << 20
CHUNKS_AHEAD = 1
SPARE_BYTES = 16 << 20  # manifest, checks, records


@dataclass(frozen=True, slots=True)
class PackResult:
    """What a run did. ``resumed_layers`` were found finished from an earlier run."""

    manifest: Manifest
    url: str
    bytes_read: int = 0
    bytes_written: int = 0
    resumed_layers: int = 0
    already_packed: bool = False
    repaired: tuple[str, ...] = ()
    """Files of a pack that was there that were damaged and were written again."""
    dropped: tuple[LeftOut, ...] = ()


def write_pack(source: Source, store: Store, progress: Progress | None = None) -> PackResult:
    """Write the pack of ``source`` to ``models/<model_id>`` of ``store``.

    Returns at once when this state of the source is packed there already. Raises what ``open_checkpoint`` raises,
    Exhausted when the store is full, Conflict when another process packs the same source. Whatever happens, nothing
    unfinished appears under ``models/``; finished layers stay in staging for the next run.
    """
    staging = Staging(store, source.key)
    if (manifest := staging.published()) is not None:
        staging.clear()
        return PackResult(manifest, store.at(pack_folder(manifest.model_id)), already_packed=True)
    checkpoint = open_checkpoint(source.store, source.files)
    result = write_material(CheckpointMaterial(source, checkpoint), staging, progress)
    return replace(result, bytes_read=source.store.bytes_read, dropped=checkpoint.dropped)


def write_material(material: Material, staging: Staging, progress: Progress | None = None) -> PackResult:
    """Write the pack of a material by way of a staging area. Raises what the material raises, Exhausted, Conflict."""
    with staging.locked():
        packer = Packer(material, staging, progress or Silent())
        manifest = packer.run()
        staging.publish(manifest)
    return PackResult(
        manifest,
        staging.store.at(pack_folder(manifest.model_id)),
        bytes_written=packer.bytes_written,
        resumed_layers=packer.resumed_layers,
    )


@dataclass(slots=True)
class Packer:
    """One run: fills the staging area and works out the manifest."""

    material: Material
    staging: Staging
    progress: Progress
    bytes_written: int = 0
    resumed_layers: int = 0
    layout: BlobLayout = field(init=False)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    """The canonical tensors written so far, and what identifies their data."""
    tensor_digests: dict[str, str] = field(default_factory=dict)

    def run(self) -> Manifest:
        material, model = self.material, self.material.model
        self.layout = lay.blob_layout(model, material.dtype, material.dtypes)
        self._plan_room()
        skeleton = [*self._shards(), *self._files()]
        records = [self._layer(layer) for layer in range(len(model.blocks))]
        data = checks_file([record.checks for record in records], self.layout.blob_bytes)
        manifest = Manifest(
            model_id="",
            weights_id=lay.weights_id(self.tensors, self.tensor_digests),
            family=model.family,
            router=model.router,
            top_k=model.top_k,
            num_layers=len(model.blocks),
            num_experts=model.num_experts,
            hidden_size=model.hidden_size,
            dtype=material.dtype,
            numbers=model.numbers.spec if model.numbers else None,
            layout=self.layout,
            layers=tuple(
                ExpertLayer(
                    block=model.blocks[layer],
                    file=lay.layer_file(layer),
                    data_offset=len(lay.expert_file_header(model.layer_experts[layer], self.layout.blob_bytes)),
                    stride=self.layout.blob_bytes,
                    digests=record.digests,
                )
                for layer, record in enumerate(records)
            ),
            skeleton=tuple(sorted(skeleton, key=lambda file: file.path)),
            checks=self.put(lay.CHECKS_FILE, data),
            origin=Origin(url=material.origin, revision=material.revision, tool=f"premoe {_version()}"),
        )
        return manifest.model_copy(update={"model_id": manifest.content_id()})

    def _plan_room(self) -> None:
        """Tell the progress bar the bytes to come, and refuse early where they cannot fit."""
        model = self.material.model
        experts = sum(model.layer_experts) * self.layout.blob_bytes
        total = experts + sum(tensor.num_bytes for tensor in self.material.skeleton())
        self.progress.total(total)
        store = self.staging.store
        free = store.free_bytes()
        staged = sum(info.size for info in store.list(f"{self.staging.root}/pack"))
        if free is not None and total + SPARE_BYTES - staged > free:
            raise Exhausted(
                f"no space for the pack in {store.url}: {total + SPARE_BYTES - staged} bytes needed, {free} free; "
                "free some room and run again",
                reason="DISK_FULL",
            )

    def _shards(self) -> Iterator[PackFile]:
        self.tensors |= {tensor.name: tensor for tensor in self.material.skeleton()}
        shards = lay.skeleton_shards(self.material.skeleton())
        for index, tensors in enumerate(shards):
            file = lay.shard_file(index, len(shards))
            self.progress.stage(file)
            record = self.staging.load(file, ShardRecord)
            if record is None or record.tensors.keys() != {tensor.name for tensor in tensors}:
                record = self.write_shard(file, tensors)
                self.staging.save(file, record)
            else:
                self.progress.advance(sum(tensor.num_bytes for tensor in tensors))
            self.tensor_digests |= record.tensors
            yield PackFile(path=file, num_bytes=record.num_bytes, digest=record.digest)

    def write_shard(self, file: str, tensors: Sequence[TensorInfo]) -> ShardRecord:
        """Stage one skeleton shard of these tensors, in their order."""
        header = encode_header([(one.name, one.dtype, one.shape) for one in tensors], {"format": "pt"})
        whole = blake3.blake3(header)
        digests = {tensor.name: blake3.blake3() for tensor in tensors}
        rooms = Rooms(min(CHUNK_BYTES, max(tensor.num_bytes for tensor in tensors)), CHUNKS_AHEAD)
        with self.staging.store.writer(self.staging.path(file)) as out:
            out.write(header)
            for tensor, chunk in rooms.read_ahead(_chunks(tensors), self._chunk):
                self._check(tensor, chunk)
                whole.update(chunk)
                digests[tensor.name].update(chunk)
                out.write(chunk)
                self.progress.advance(len(chunk))
        size = len(header) + sum(tensor.num_bytes for tensor in tensors)
        self.bytes_written += size
        found = {name: one.hexdigest() for name, one in digests.items()}
        return ShardRecord(num_bytes=size, digest=whole.hexdigest(), tensors=found)

    def _chunk(self, place: tuple[TensorInfo, int], room: memoryview) -> tuple[TensorInfo, memoryview]:
        tensor, start = place
        view = room[: tensor.num_bytes - start]
        self.material.read_tensor(tensor, start, view)
        return tensor, view

    def _files(self) -> Iterator[PackFile]:
        for path in self.material.skeleton_files:
            yield self.write_file(path)

    def write_file(self, path: str) -> PackFile:
        """A small skeleton file."""
        return self.put(f"skeleton/{path}", self.material.file(path))

    def put(self, file: str, data: bytes) -> PackFile:
        """Stage a small file."""
        self.staging.store.put(self.staging.path(file), data)
        self.bytes_written += len(data)
        return PackFile(path=file, num_bytes=len(data), digest=blake3.blake3(data).hexdigest())

    def _layer(self, layer: int) -> LayerRecord:
        file = lay.layer_file(layer)
        self.progress.stage(file)
        record = self.staging.load(file, LayerRecord)
        if record is None or not self._fits(layer, record):
            record = self.write_layer(layer, file)
            self.staging.save(file, record)
        else:
            self.resumed_layers += 1
            self.progress.advance(len(record.digests) * self.layout.blob_bytes)
        self.tensor_digests |= record.tensors
        for expert in range(self.material.model.layer_experts[layer]):
            parts = lay.expert_parts(self.material.model, self.layout, layer, expert)
            self.tensors |= {part.name: part for part in parts}
        return record

    def _fits(self, layer: int, record: LayerRecord) -> bool:
        """Whether a record is of as many blobs, pieces and tensors as the layer has."""
        model, pieces = self.material.model, piece_count(self.layout.blob_bytes)
        experts = model.layer_experts[layer]
        names = {model.expert_name(layer, expert, one) for expert in range(experts) for one in model.expert_tensors}
        return (
            len(record.digests) == experts
            and [len(row) for row in record.checks] == [pieces] * experts
            and record.tensors.keys() == names
        )

    def write_layer(self, layer: int, file: str) -> LayerRecord:
        """Stage one MoE layer's expert file."""
        experts, blob_bytes = self.material.model.layer_experts[layer], self.layout.blob_bytes
        header = lay.expert_file_header(experts, blob_bytes)
        digests: list[str] = []
        checks: list[tuple[int, ...]] = []
        tensors: dict[str, str] = {}
        rooms = Rooms(blob_bytes, min(AHEAD_BYTES // blob_bytes, AHEAD_BLOBS))
        with self.staging.store.writer(self.staging.path(file)) as out:
            out.write(header)
            # Hashed where they are read, beside the writing of the one before.
            for blob, known in rooms.read_ahead(range(experts), lambda expert, room: self._blob(layer, expert, room)):
                digests.append(known.digest)
                checks.append(known.checks)
                tensors |= known.tensors
                out.write(blob)
                self.progress.advance(blob_bytes)
        size = len(header) + experts * blob_bytes
        self.bytes_written += size
        return LayerRecord(num_bytes=size, tensors=tensors, digests=tuple(digests), checks=tuple(checks))

    def _blob(self, layer: int, expert: int, room: memoryview) -> tuple[memoryview, Identity]:
        """One expert's blob and what identifies it. Raises CorruptData: its scales."""
        self.material.read_expert(layer, expert, room, self.layout)
        parts = lay.expert_parts(self.material.model, self.layout, layer, expert)
        for part in parts:
            self._check(part, room[part.offset : part.offset + part.num_bytes])
        return room, identify(room, parts)

    def _check(self, tensor: TensorInfo, data: bytes | memoryview) -> None:
        """Raise CorruptData (SCALES_INVALID) for scales that no weight can have."""
        numbers = self.material.model.numbers
        if numbers is not None and (fault := numbers.fault(tensor.name, tensor.dtype, data)):
            raise CorruptData(
                f"{self.material.where}: tensor {tensor.name} holds {fault}; download or quantise the model again",
                reason="SCALES_INVALID",
            )


def _chunks(tensors: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, int]]:
    """Where the parts begin that tensors are read in."""
    return ((tensor, start) for tensor in tensors for start in range(0, tensor.num_bytes, CHUNK_BYTES))


def _version() -> str:
    from importlib.metadata import version

    return version("premoe")
