"""Re-reading a whole pack and checking every digest in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import blake3

from premoe_runtime.families.registry import read_model
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound, PremoeError
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest, PackFile
from premoe_runtime.formats.pieces import piece_count
from premoe_runtime.packs import layout as lay
from premoe_runtime.packs.checkpoint import read_header
from premoe_runtime.packs.checks import Checks, piece_checks, read_checks
from premoe_runtime.packs.consistency import contradiction, skeleton_contradiction
from premoe_runtime.packs.contents import TensorInfo
from premoe_runtime.packs.place import MANIFEST_FILE
from premoe_runtime.packs.progress import Progress, Silent
from premoe_runtime.packs.ranges import read_ahead
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.packs.writer import AHEAD_BLOBS, AHEAD_BYTES, CHUNK_BYTES

CONFIG_FILE = "skeleton/config.json"
DAMAGE = (NotFound, CorruptData, InvalidInput)
"""What reading a damaged pack raises; a store that does not answer is no damage."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One file, or one blob in it, that is not what the manifest says."""

    file: str
    problem: str
    expert: ExpertId | None = None

    @property
    def object(self) -> str:
        return self.file if self.expert is None else f"{self.file} {self.expert}"

    def __str__(self) -> str:
        return f"{self.object}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Verification:
    """Outcome of a full read; the pack is good when ``faults`` is empty."""

    manifest: Manifest
    url: str
    bytes_read: int
    faults: tuple[Fault, ...]

    def raise_for_faults(self) -> None:
        """Raise CorruptData (reason PACK_DAMAGED) that names the first bad object."""
        if self.faults:
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            raise CorruptData(f"pack {self.url}: {self.faults[0]}{more}; pack the model again", reason="PACK_DAMAGED")


def verify_pack(reader: PackReader, progress: Progress | None = None) -> Verification:
    """Read every byte of a pack once and compare it with the manifest.

    Raises NotFound, CorruptData (the manifest itself is broken) and Unavailable; damage of the pack is returned.
    """
    run = _Verifier(reader, reader.manifest(), progress or Silent())
    faults = tuple(run.faults())
    return Verification(reader.manifest(), reader.url, reader.store.bytes_read, faults)


@dataclass(slots=True)
class _Verifier:
    reader: PackReader
    manifest: Manifest
    progress: Progress
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    whole: bool = True
    """Whether every skeleton file was as the manifest says."""

    def faults(self) -> Iterator[Fault]:
        manifest = self.manifest
        self.progress.total(manifest.experts_bytes + manifest.skeleton_bytes)
        found = 0
        for fault in chain(self._skeleton(), self._experts()):
            found += 1
            yield fault
        if not found and lay.weights_id(self.tensors, self.digests) != manifest.weights_id:
            yield Fault(MANIFEST_FILE, "weights_id is not that of the tensors")

    def _skeleton(self) -> Iterator[Fault]:
        for file in self.manifest.skeleton:
            self.progress.stage(file.path)
            try:
                self._read_file(file)
            except DAMAGE as error:
                self.whole = False
                yield self._fault(file.path, error)

    def _fault(self, file: str, error: PremoeError) -> Fault:
        """What is wrong with a file, said once: place and advice are those of the whole verification."""
        problem = str(error).partition("; ")[0].removeprefix(f"pack {self.reader.url}: ")
        for place in (self.reader.store.at(self.reader.path(file)), file):
            problem = problem.removeprefix(place).lstrip(": ")
        return Fault(file, problem)

    def _read_file(self, file: PackFile) -> None:
        """Read a skeleton file once, part by part: header and tensors, or as a whole. Raises CorruptData."""
        store, path = self.reader.store, self.reader.path(file.path)
        size = store.head(path).size
        if size != file.num_bytes:
            raise CorruptData(f"{size} bytes long, expected {file.num_bytes}")
        tensors = read_header(store, path, size) if path.endswith(".safetensors") else []
        tensors.sort(key=lambda tensor: tensor.offset)
        start = tensors[0].offset if tensors else size
        whole = blake3.blake3()
        for tensor in [TensorInfo("", "U8", (start,), path, 0, start), *tensors]:
            one = blake3.blake3()
            for offset in range(0, tensor.num_bytes, CHUNK_BYTES):
                length = min(CHUNK_BYTES, tensor.num_bytes - offset)
                chunk = store.get_range(path, tensor.offset + offset, length)
                whole.update(chunk)
                one.update(chunk)
                self.progress.advance(length)
            if tensor.name in self.tensors:
                raise CorruptData(f"tensor {tensor.name} is in {self.tensors[tensor.name].file}, too")
            if tensor.name:
                self.tensors[tensor.name] = tensor
                self.digests[tensor.name] = one.hexdigest()
        if whole.hexdigest() != file.digest:
            raise CorruptData("does not match its digest")

    def _experts(self) -> Iterator[Fault]:
        manifest = self.manifest
        try:
            model = read_model(self.reader.read_file(CONFIG_FILE), CONFIG_FILE)
        except DAMAGE as error:
            yield self._fault(CONFIG_FILE, error)
            return
        wrong = contradiction(manifest, model) or self._misplaced()
        if not wrong:
            model = model.cut_to(manifest.layer_experts)
        if not wrong and self.whole:
            wrong = skeleton_contradiction(manifest, model, tuple(self.tensors.values()))
        if wrong:
            yield Fault(MANIFEST_FILE, wrong)
            return
        checks = None
        try:
            pieces = piece_count(manifest.layout.blob_bytes)
            data = self.reader.read_file(lay.CHECKS_FILE)
            checks = read_checks(data, (manifest.num_layers, manifest.num_experts, pieces), lay.CHECKS_FILE)
        except DAMAGE as error:
            yield self._fault(lay.CHECKS_FILE, error)
        for layer in range(manifest.num_layers):
            self.progress.stage(manifest.layers[layer].file)
            try:
                yield from self._layer(layer, model, checks)
            except DAMAGE as error:
                yield self._fault(manifest.layers[layer].file, error)

    def _misplaced(self) -> str:
        size = self.manifest.layout.blob_bytes
        wrong = [
            one.file
            for one in self.manifest.layers
            if (one.data_offset, one.stride) != (len(lay.expert_file_header(len(one.digests), size)), size)
        ]
        return f"it places the blobs of {wrong[0]} elsewhere" if wrong else ""

    def _layer(self, layer: int, model: MoeModel, checks: Checks | None) -> Iterator[Fault]:
        manifest, store = self.manifest, self.reader.store
        described = manifest.layers[layer]
        path, blob_bytes = self.reader.path(described.file), manifest.layout.blob_bytes
        experts = len(described.digests)
        header = lay.expert_file_header(experts, blob_bytes)
        size, expected = store.head(path).size, len(header) + experts * blob_bytes
        if size != expected:
            raise CorruptData(f"{size} bytes long, expected {expected}")
        if store.get_range(path, 0, len(header)) != header:
            yield Fault(described.file, "its header is damaged")

        def load(expert: int) -> bytes:
            return store.get_range(path, len(header) + expert * blob_bytes, blob_bytes)

        depth = min(AHEAD_BYTES // blob_bytes, AHEAD_BLOBS)
        for expert, blob in enumerate(read_ahead(range(experts), load, depth)):
            self.progress.advance(blob_bytes)
            known = ExpertId(layer, expert)
            if blake3.blake3(blob).hexdigest() != described.digests[expert]:
                yield Fault(described.file, "does not match its digest", known)
            elif checks is not None and piece_checks(blob) != tuple(checks[layer, expert].tolist()):
                yield Fault(lay.CHECKS_FILE, f"does not match {described.file} {known}")
            self._note_tensors(model, layer, expert, blob)

    def _note_tensors(self, model: MoeModel, layer: int, expert: int, blob: bytes) -> None:
        """The expert's source tensors, for ``weights_id``."""
        for part in lay.expert_parts(model, self.manifest.layout, layer, expert):
            self.tensors[part.name] = part
            view = memoryview(blob)[part.offset : part.offset + part.num_bytes]
            self.digests[part.name] = blake3.blake3(view).hexdigest()
