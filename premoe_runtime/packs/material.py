"""What a pack is made of: the port between whoever has a model's tensors and the writer, and checkpoints behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from premoe_runtime.families.spec import ExpertField, MoeModel
from premoe_runtime.formats.manifest import BlobField, BlobLayout
from premoe_runtime.packs import layout as lay
from premoe_runtime.packs.checkpoint import Checkpoint
from premoe_runtime.packs.contents import TensorInfo
from premoe_runtime.packs.ranges import Read, read_all
from premoe_runtime.packs.source import Source


class Material(Protocol):
    """A model to be packed. Tensors and experts are read from several threads, layers in their order."""

    @property
    def model(self) -> MoeModel: ...

    @property
    def dtype(self) -> str:
        """What the routed experts are computed in."""

    @property
    def dtypes(self) -> Mapping[str, str]:
        """What every field of theirs is stored in."""

    @property
    def origin(self) -> str: ...

    @property
    def revision(self) -> str: ...

    @property
    def where(self) -> str:
        """For errors: what holds a wrong tensor."""

    @property
    def skeleton_files(self) -> Sequence[str]:
        """Small files beside the tensors, by name."""

    def file(self, path: str) -> bytes:
        """One of ``skeleton_files``."""

    def skeleton(self) -> Sequence[TensorInfo]:
        """Every tensor that is not a routed expert, by name."""

    def read_tensor(self, tensor: TensorInfo, start: int, room: memoryview) -> None:
        """Fill ``room`` with bytes of a skeleton tensor, from its byte ``start`` on."""

    def read_expert(self, layer: int, expert: int, room: memoryview, layout: BlobLayout) -> None:
        """Fill the fields of one expert's blob; what no field fills stays as it is."""


@dataclass(frozen=True, slots=True)
class CheckpointMaterial:
    """A checkpoint as it is."""

    source: Source
    checkpoint: Checkpoint

    @property
    def model(self) -> MoeModel:
        return self.checkpoint.model

    @property
    def dtype(self) -> str:
        return self.checkpoint.dtype

    @property
    def dtypes(self) -> Mapping[str, str]:
        return self.checkpoint.dtypes

    @property
    def origin(self) -> str:
        return self.source.origin

    @property
    def revision(self) -> str:
        return self.source.revision

    @property
    def where(self) -> str:
        return self.checkpoint.store.url

    @property
    def skeleton_files(self) -> Sequence[str]:
        return self.source.skeleton_files

    def file(self, path: str) -> bytes:
        return self.checkpoint.config if path == "config.json" else self.source.store.get(path)

    def skeleton(self) -> Sequence[TensorInfo]:
        return self.checkpoint.skeleton()

    def read_tensor(self, tensor: TensorInfo, start: int, room: memoryview) -> None:
        self.checkpoint.store.read_into(tensor.file, tensor.offset + start, [room])

    def read_expert(self, layer: int, expert: int, room: memoryview, layout: BlobLayout) -> None:
        """From wherever its fields lie."""
        reads: list[Read] = []
        turned: list[tuple[ExpertField, BlobField, bytearray]] = []
        for source, place in zip(self.checkpoint.expert(layer, expert), layout.fields, strict=True):
            into = room[place.offset : place.offset + place.num_bytes]
            if source.fused and (source.field.transposed or source.field.interleaved):
                turned.append((source.field, place, bytearray(place.num_bytes)))
                into = memoryview(turned[-1][2])
            for part in source.ranges:
                reads.append(Read(part.file, part.offset, into[: part.num_bytes]))
                into = into[part.num_bytes :]
        read_all(self.checkpoint.store, reads)
        for spec, place, data in turned:
            room[place.offset : place.offset + place.num_bytes] = lay.straighten(spec, place, data)
