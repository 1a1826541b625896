"""Writing a cut checkpoint: file by file, with ranged reads, resumable, published at the very end.

Memory: a few expert blobs, or one expert's part of a fused tensor, and the store's write buffers; skeleton tensors pass
in chunks, only a router's are held whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import blake3
import numpy as np

from premoe_runtime.families.registry import parse_json_object, read_model
from premoe_runtime.formats.errors import CorruptData, Exhausted
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import BlobField, Manifest
from premoe_runtime.offline.export import provenance
from premoe_runtime.offline.export.cut import Cut
from premoe_runtime.offline.export.destination import Destination
from premoe_runtime.offline.export.plan import (
    INDEX_FILE,
    ExpertsFile,
    FusedFile,
    OutputFile,
    SkeletonFile,
    SkeletonTensor,
    file_bytes,
    header,
    index,
    plan_files,
)
from premoe_runtime.packs import layout as lay
from premoe_runtime.packs.checkpoint import read_header
from premoe_runtime.packs.consistency import contradiction, refuse
from premoe_runtime.packs.contents import TensorInfo
from premoe_runtime.packs.progress import Progress, Silent
from premoe_runtime.packs.ranges import read_ahead
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.packs.writer import AHEAD_BLOBS, AHEAD_BYTES, CHUNK_BYTES, SPARE_BYTES
from premoe_runtime.storage import Store

SKELETON = "skeleton/"
CONFIG_FILE = f"{SKELETON}config.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """What a run wrote. ``resumed_files`` were found finished from an earlier run."""

    url: str
    num_bytes: int
    resumed_files: int


def export(reader: PackReader, cut: Cut, to: str, progress: Progress | None = None) -> Exported:
    """Write the cut checkpoint to ``to``, a folder or an object store's, that is empty or not there.

    Raises what ``Destination`` raises, CorruptData for a damaged pack, Exhausted when there is no room. Whatever
    happens, nothing unfinished appears at ``to``; finished files wait beside it for the next run.
    """
    manifest, destination = reader.manifest(), Destination.at(to)
    config = reader.read_file(CONFIG_FILE)
    model = read_model(config)
    refuse(contradiction(manifest, model))
    small = _small_files(reader, cut, config)
    files = plan_files(manifest, model.cut_to(manifest.layer_experts), cut, _skeleton_headers(reader))
    small[INDEX_FILE] = json.dumps(index(files), indent=2).encode() + b"\n"
    key = blake3.blake3(
        b"\0".join([manifest.model_id.encode(), *(data for _, data in sorted(small.items()))])
    ).hexdigest()
    destination.check_free(key)
    run = _Run(reader, manifest, destination, progress or Silent())
    run.plan_room(files, small)
    with destination.staged(key):
        for file in files:
            run.write(file)
        for path, data in small.items():
            destination.store.put(destination.staging(path), data)
        destination.publish(key, last="config.json")
    return Exported(
        destination.url, sum(map(file_bytes, files)) + sum(map(len, small.values())), resumed_files=run.resumed
    )


def _small_files(reader: PackReader, cut: Cut, config: bytes) -> dict[str, bytes]:
    """Every file of the output but the weights and their index."""
    manifest = reader.manifest()
    paths = [file.path for file in manifest.skeleton if not file.path.endswith(".safetensors")]
    files = {path.removeprefix(SKELETON): reader.read_file(path) for path in paths if path != CONFIG_FILE}
    return files | {
        "config.json": provenance.config_file(config, manifest, cut),
        provenance.EXPERTS_FILE: provenance.experts_file(manifest, cut),
        provenance.CARD_FILE: provenance.card(manifest, cut, parse_json_object(config, CONFIG_FILE)),
    }


def _skeleton_headers(reader: PackReader) -> dict[str, list[TensorInfo]]:
    """The tensors of every skeleton shard, by its path in the pack."""
    shards = [file for file in reader.manifest().skeleton if file.path.endswith(".safetensors")]
    return {file.path: read_header(reader.store, reader.path(file.path), file.num_bytes) for file in shards}


@dataclass(slots=True)
class _Run:
    """One run: fills the staging area."""

    reader: PackReader
    manifest: Manifest
    destination: Destination
    progress: Progress
    resumed: int = 0
    seen: dict[tuple[ExpertId, str], bytes] = field(default_factory=dict)
    """Digests of fields, of blobs whose own digest was right."""

    @property
    def store(self) -> Store:
        return self.destination.store

    def plan_room(self, files: tuple[OutputFile, ...], small: Mapping[str, bytes]) -> None:
        """Tell the progress bar the bytes to come, and refuse early where they cannot fit. Raises Exhausted."""
        total = sum(map(file_bytes, files)) + sum(map(len, small.values()))
        self.progress.total(sum(map(file_bytes, files)))
        free, needed = self.store.free_bytes(), total + SPARE_BYTES - self.destination.staged_bytes()
        if free is not None and needed > free:
            raise Exhausted(
                f"no space for the checkpoint in {self.destination.url}: {needed} bytes needed, {free} free; free some "
                "room and run again",
                reason="DISK_FULL",
            )

    def write(self, file: OutputFile) -> None:
        """Stage one safetensors file, unless it is there."""
        self.progress.stage(file.path)
        path = self.destination.staging(file.path)
        if self.store.exists(path) and self.store.head(path).size == file_bytes(file):
            self.resumed += 1
            self.progress.advance(file_bytes(file))
            return
        with self.store.writer(path) as out:
            for chunk in self._chunks(file):
                out.write(chunk)
                self.progress.advance(len(chunk))

    def _chunks(self, file: OutputFile) -> Iterator[bytes | memoryview]:
        yield header(file)
        if isinstance(file, SkeletonFile):
            yield from self._skeleton(file)
        elif isinstance(file, ExpertsFile):
            yield from self._one_by_one(file)
        else:
            yield from self._fused(file)

    def _skeleton(self, file: SkeletonFile) -> Iterator[bytes]:
        """The shard's tensors; it is read once from end to end, so that its digest is checked on the way."""
        described = next(one for one in self.manifest.skeleton if one.path == file.source)
        path, whole = self.reader.path(file.source), blake3.blake3()
        start = min((one.source.offset for one in file.tensors), default=described.num_bytes)
        whole.update(self.reader.store.get_range(path, 0, start))
        for tensor in file.tensors:
            step = CHUNK_BYTES if tensor.experts is None else max(tensor.source.num_bytes, 1)
            for offset in range(0, tensor.source.num_bytes, step):
                length = min(step, tensor.source.num_bytes - offset)
                data = self.reader.store.get_range(path, tensor.source.offset + offset, length)
                whole.update(data)
                yield data if tensor.experts is None else _rows(tensor, data)
        if whole.hexdigest() != described.digest:
            raise self._damaged(file.source)

    def _one_by_one(self, file: ExpertsFile) -> Iterator[memoryview]:
        depth = min(AHEAD_BYTES // self.manifest.layout.blob_bytes, AHEAD_BLOBS)
        blobs = read_ahead(file.experts, lambda expert: self._blob(ExpertId(file.layer, expert)), depth)
        for blob, parts in zip(blobs, file.parts, strict=True):
            for part in parts:
                yield memoryview(blob)[part.offset : part.offset + part.num_bytes]

    def _fused(self, file: FusedFile) -> Iterator[bytes]:
        """Field by field; a blob is read whole, and checked, for the first, and of the others only what they need."""
        depth = min(AHEAD_BYTES // self.manifest.layout.blob_bytes, AHEAD_BLOBS)
        for spec, place in file.fields:

            def load(expert: int, place: BlobField = place) -> bytes:
                return self._field(ExpertId(file.layer, expert), place)

            for data in read_ahead(file.experts, load, depth):
                yield lay.fused(spec, place, data)
        self.seen.clear()

    def _field(self, expert: ExpertId, place: BlobField) -> bytes:
        known = self.seen.get((expert, place.name))
        if known is None:
            blob = self._blob(expert)
            parts = {one.name: blob[one.offset : one.offset + one.num_bytes] for one in self.manifest.layout.fields}
            self.seen |= {(expert, name): blake3.blake3(part).digest() for name, part in parts.items()}
            return parts[place.name]
        data = self._read(expert, place.offset, place.num_bytes)
        if blake3.blake3(data).digest() != known:
            raise self._damaged(f"{self.manifest.layers[expert.layer].file} {expert}")
        return data

    def _blob(self, expert: ExpertId) -> bytes:
        blob = self._read(expert, 0, self.manifest.layout.blob_bytes)
        if blake3.blake3(blob).hexdigest() != self.manifest.digest(expert):
            raise self._damaged(f"{self.manifest.layers[expert.layer].file} {expert}")
        return blob

    def _read(self, expert: ExpertId, offset: int, length: int) -> bytes:
        layer = self.manifest.layers[expert.layer]
        start = layer.data_offset + expert.expert * layer.stride + offset
        return self.reader.store.get_range(self.reader.path(layer.file), start, length)

    def _damaged(self, what: str) -> CorruptData:
        return CorruptData(
            f"pack {self.reader.url}: {what} does not match its digest; pack the model again", reason="BAD_DIGEST"
        )


def _rows(tensor: SkeletonTensor, data: bytes) -> bytes:
    """The rows of a router's tensor that stay."""
    source = tensor.source
    elements = int(np.prod(source.shape, dtype=np.int64))
    items = np.frombuffer(data, dtype=f"V{source.num_bytes // elements}").reshape(source.shape)
    return np.take(items, tensor.experts or (), axis=tensor.axis).tobytes()
