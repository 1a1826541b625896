"""The manifest of a pack: everything a worker must know before it reads a single weight.

A manifest comes from object storage, so it is untrusted input: pydantic checks it, and
``Manifest.parse`` turns what does not fit into one ``CorruptData`` line.
"""

from __future__ import annotations

import json
from typing import Literal

import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.ids import ExpertId

BLOB_ALIGNMENT = 4096
FIELD_ALIGNMENT = 256

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RouterSpec(_Frozen):
    """How a family turns router logits into experts and weights (method.md section 5).

    scores   = softmax | sigmoid of the full-width logits, or raw logits for ``topk_softmax``
    choice   = scores (+ correction bias), absent experts at -inf here (``selection`` semantics)
    weights  = scores of the chosen; renormalised when ``renormalise``; times ``scale``
    """

    score: Literal["softmax", "sigmoid", "topk_softmax"]
    renormalise: bool
    scale: float = 1.0
    weights_dtype: Literal["model", "float32"] = "model"
    """dtype of the combine weights handed to the experts: Mixtral keeps float32, Qwen and OLMoE cast back."""


class BlobField(_Frozen):
    """One tensor inside an expert blob; ``offset`` in bytes from the blob's start, a multiple of 256."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str) -> str:
        if dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
        return dtype

    @property
    def num_bytes(self) -> int:
        count = DTYPE_BYTES[self.dtype]
        for size in self.shape:
            count *= size
        return count


class BlobLayout(_Frozen):
    """Where the fields lie in every expert blob. ``blob_bytes`` is a multiple of 4096; the padding is zero."""

    fields: tuple[BlobField, ...]
    blob_bytes: int


class ExpertLayer(_Frozen):
    """One MoE layer's file: blob ``e`` lies at ``data_offset + e * stride``."""

    block: int
    """Index of the transformer block that holds this MoE layer."""
    file: str
    data_offset: int
    stride: int
    digests: tuple[str, ...]
    """blake3 of every blob, padding included, ascending by expert."""


class PackFile(_Frozen):
    """A file of the pack beside the expert layers."""

    path: str
    num_bytes: int
    digest: str


class Origin(_Frozen):
    """Where the checkpoint came from: metadata only, no part of any id."""

    url: str
    revision: str = ""
    tool: str = ""


class Manifest(_Frozen):
    """A pack's table of contents (DESIGN section 5)."""

    format_version: Literal[1] = 1
    model_id: str
    weights_id: str
    family: str
    router: RouterSpec
    top_k: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    """MoE layers, not transformer blocks."""
    num_experts: int = Field(ge=1)
    hidden_size: int
    dtype: str
    layout: BlobLayout
    layers: tuple[ExpertLayer, ...]
    skeleton: tuple[PackFile, ...]
    """Files under ``skeleton/``: safetensors shards, config, tokenizer, chat template, generation config."""
    checks: PackFile
    origin: Origin

    @classmethod
    def parse(cls, data: bytes, *, where: str = "manifest.json") -> Manifest:
        """Check and read a manifest. Raises CorruptData with the first fault in one line."""
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "document"
            raise CorruptData(f"{where}: {place}: {first['msg']}", reason="MANIFEST_INVALID") from error
        manifest.check(where=where)
        return manifest

    def check(self, *, where: str = "manifest.json") -> None:
        """Raise CorruptData when the numbers contradict each other or ``model_id`` is not the content's."""
        wrong = None
        if len(self.layers) != self.num_layers:
            wrong = f"{len(self.layers)} layers listed, num_layers is {self.num_layers}"
        elif any(len(layer.digests) != self.num_experts for layer in self.layers):
            wrong = f"a layer does not list {self.num_experts} blob digests"
        elif self.layout.blob_bytes % BLOB_ALIGNMENT or any(f.offset % FIELD_ALIGNMENT for f in self.layout.fields):
            wrong = "blob layout is not aligned"
        elif any(f.offset + f.num_bytes > self.layout.blob_bytes for f in self.layout.fields):
            wrong = "a field reaches past the end of the blob"
        elif self.top_k > self.num_experts:
            wrong = f"top_k {self.top_k} exceeds num_experts {self.num_experts}"
        elif self.model_id != self.content_id():
            wrong = "model_id is not the digest of the content"
        if wrong:
            raise CorruptData(f"{where}: {wrong}", reason="MANIFEST_INVALID")

    def content_id(self) -> str:
        """blake3 over the canonical content: all but ``model_id`` and ``origin``."""
        content = self.model_dump(mode="json", exclude={"model_id", "origin"})
        return blake3.blake3(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode()

    def digest(self, expert: ExpertId) -> str:
        return self.layers[expert.layer].digests[expert.expert]

    @property
    def experts_bytes(self) -> int:
        """Bytes of all expert blobs."""
        return self.num_layers * self.num_experts * self.layout.blob_bytes

    @property
    def skeleton_bytes(self) -> int:
        return sum(file.num_bytes for file in self.skeleton)
