"""The manifest of a pack: everything a worker must know before it reads a single weight.

A manifest comes from object storage, so it is untrusted input: pydantic checks it, and
``Manifest.parse`` turns what does not fit into one ``CorruptData`` line.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Annotated, Any, Literal

import blake3
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from premoe_runtime.formats.arrays import Mask, existing
from premoe_runtime.formats.documents import Name, ObjectId, parse_document
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.ids import ExpertId

BLOB_ALIGNMENT = 4096
FIELD_ALIGNMENT = 256

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4, "I64": 8}


def _known_dtype(dtype: str) -> str:
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype {dtype[:20]!r} is not one of {', '.join(DTYPE_BYTES)}")
    return dtype


def _path_inside(path: str) -> str:
    if {"", ".", ".."} & set(path.split("/")):
        raise ValueError("is no path inside a pack")
    return path


# Bounds far above every model, and low enough that no sum or product of them leaves 63 bits.
Dtype = Annotated[str, AfterValidator(_known_dtype)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
Dimension = Annotated[int, Field(ge=1, le=1 << 24)]
BlockSide = Annotated[int, Field(ge=0, le=1 << 24)]
Offset = Annotated[int, Field(ge=0, le=1 << 40)]
BlobBytes = Annotated[int, Field(ge=1, le=1 << 34)]
PackPath = Annotated[Name, AfterValidator(_path_inside)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _later(default: object, **bounds: Any) -> Any:
    """A field that older manifests lack: not written where it has its default, so that their ids stay."""
    return Field(default=default, exclude_if=lambda value: value == default, **bounds)


class RouterSpec(_Frozen):
    """How a family turns router logits into experts and weights (method.md section 5).

    scores   = softmax | sigmoid of the full-width logits, or raw logits for ``topk_softmax`` and ``sparsemixer``
    choice   = scores (+ correction bias), absent experts at -inf here (``selection`` semantics), then cut to groups
    weights  = scores of the chosen; renormalised when ``renormalise``; times ``scale``

    Arithmetic of later families is added as fields whose defaults are excluded from the dump (``exclude_if``): ids of
    older packs are counted over it.
    """

    score: Literal["softmax", "sigmoid", "topk_softmax", "sparsemixer"]
    renormalise: bool
    scale: float = 1.0
    weights_dtype: Literal["model", "float32"] = "model"
    """dtype of the combine weights handed to the experts: Mixtral keeps float32, Qwen and OLMoE cast back."""
    logits_dtype: Literal["model", "float32"] = _later("model")
    """dtype that logits are computed in: that of the router's weights, or always float32 (DeepSeek, GLM, ERNIE)."""
    scores_dtype: Literal["float32", "model"] = _later("float32")
    """dtype of scores and of the arithmetic of weights: float32, or the logits' own (LFM2)."""
    bias: bool = _later(False)
    """Experts are chosen by score + correction bias; weights never contain the bias."""
    groups: int = _later(1, ge=1, le=32_767)
    """Experts are chosen in the best ``chosen_groups`` of so many equal groups of neighbours."""
    chosen_groups: int = _later(1, ge=1, le=32_767)
    group_score: Literal["top2", "max"] = _later("top2")
    """A group counts by the sum of its two best (then other groups are -inf), or by its best (then they are 0)."""
    floor: float = _later(0.0, ge=0.0)
    """Least sum that ``renormalise`` divides by."""
    offset: float = _later(0.0, ge=0.0)
    """Added to the sum that ``renormalise`` divides by."""
    jitter: float = _later(0.0, ge=0.0)
    """Of ``sparsemixer``: an expert is weighed against those whose logits are nearer than twice this, relatively."""
    ranked: bool = _later(True)
    """Whether a token's experts are added up from the best one down, or in the order that an unsorted top-k gives."""


class NumberSpec(_Frozen):
    """How stored tensors become the weights that are computed with (``premoe_runtime.numbers``).

    Settings of later formats are added as fields whose defaults are excluded from the dump, as in ``RouterSpec``.
    """

    method: Name
    """``quant_method`` of config.json."""
    block: tuple[BlockSide, BlockSide]
    """Rows and columns of weights that share a scale; 0: all."""
    bits: int = _later(0, ge=0, le=8)
    """Of an integer; 0 for formats whose numbers have one width."""
    packed: bool = _later(False)
    """Whether compressed-tensors packs integers into words."""
    symmetric: bool = _later(True)
    """Whether compressed-tensors has no zero points."""
    by_importance: bool = _later(False)
    """Whether compressed-tensors says of every column which group it is in."""
    zeros_less: int = _later(0, ge=0, le=1)
    """What GPTQ stores zero points less by."""


class BlobField(_Frozen):
    """One tensor inside an expert blob; ``offset`` in bytes from the blob's start, a multiple of 256."""

    name: Name
    dtype: Dtype
    shape: tuple[Annotated[int, Field(ge=1, le=1 << 31)], ...] = Field(min_length=1, max_length=4)
    offset: Offset

    @property
    def num_bytes(self) -> int:
        count = DTYPE_BYTES[self.dtype]
        for size in self.shape:
            count *= size
        return count


class BlobLayout(_Frozen):
    """Where the fields lie in every expert blob. ``blob_bytes`` is a multiple of 4096; the padding is zero."""

    fields: tuple[BlobField, ...] = Field(min_length=1, max_length=100)
    blob_bytes: BlobBytes


class ExpertLayer(_Frozen):
    """One MoE layer's file: blob ``e`` lies at ``data_offset + e * stride``."""

    block: int = Field(ge=0, le=10_000)
    """Index of the transformer block that holds this MoE layer."""
    file: PackPath
    data_offset: Offset
    stride: Offset
    digests: tuple[Digest, ...]
    """blake3 of every blob, padding included, ascending by expert: as many as the layer has experts."""


_CURE = "pack the model again"


class PackFile(_Frozen):
    """A file of the pack beside the expert layers."""

    path: PackPath
    num_bytes: Offset
    digest: Digest


class Origin(_Frozen):
    """Where the checkpoint came from: metadata only, no part of any id."""

    url: str
    revision: str = ""
    tool: str = ""


class Manifest(_Frozen):
    """A pack's table of contents (DESIGN section 5)."""

    format_version: Literal[1] = 1
    model_id: str
    weights_id: ObjectId
    family: Name
    router: RouterSpec
    top_k: int = Field(ge=1)
    num_layers: int = Field(ge=1, le=10_000)
    """MoE layers, not transformer blocks."""
    num_experts: int = Field(ge=1, le=32_767)
    """Of the layer that has the most; the width E of every table over experts."""
    hidden_size: Dimension
    dtype: Dtype
    """Of the experts' weights as they are computed with, unless a loader asks for another."""
    numbers: NumberSpec | None = _later(None)
    """How they are stored, where that is something else; skeleton and blobs then hold the checkpoint's own tensors."""
    layout: BlobLayout
    layers: tuple[ExpertLayer, ...]
    skeleton: tuple[PackFile, ...]
    """Files under ``skeleton/``: safetensors shards, config, tokenizer, chat template, generation config."""
    checks: PackFile
    origin: Origin

    @classmethod
    def parse(cls, data: bytes, *, where: str = "manifest.json") -> Manifest:
        """Check and read a manifest. Raises CorruptData with the first fault in one line."""
        manifest = parse_document(cls, data, where=where, reason="MANIFEST_INVALID", cure=_CURE)
        manifest.check(where=where)
        return manifest

    def check(self, *, where: str = "manifest.json") -> None:
        """Raise CorruptData when the numbers contradict each other or ``model_id`` is not the content's."""
        wrong = self._contradiction()
        if not wrong and self.model_id != self.content_id():
            wrong = "model_id is not the digest of the content"
        if wrong:
            raise CorruptData(f"{where}: {wrong}; {_CURE}", reason="MANIFEST_INVALID")

    def _contradiction(self) -> str:
        blob_bytes, blocks = self.layout.blob_bytes, [layer.block for layer in self.layers]
        files = [*(layer.file for layer in self.layers), *(file.path for file in self.skeleton), self.checks.path]
        if len(self.layers) != self.num_layers:
            return f"{len(self.layers)} layers listed, num_layers is {self.num_layers}"
        if any(later <= earlier for earlier, later in pairwise(blocks)):
            return "its layers are not in the order of their blocks"
        if max(self.layer_experts) != self.num_experts:
            return f"its layers list up to {max(self.layer_experts)} blob digests, num_experts is {self.num_experts}"
        if any(layer.stride < blob_bytes for layer in self.layers):
            return "it places blobs over each other"
        if len(set(files)) != len(files):
            return "two of its files have one name"
        if any(not file.path.startswith("skeleton/") for file in self.skeleton):
            return "a skeleton file is not in skeleton/"
        if self.top_k > min(self.layer_experts):
            return f"top_k {self.top_k} exceeds the {min(self.layer_experts)} experts of a layer"
        return self._layout_contradiction()

    def _layout_contradiction(self) -> str:
        fields = sorted(self.layout.fields, key=lambda field: field.offset)
        if self.layout.blob_bytes % BLOB_ALIGNMENT or any(field.offset % FIELD_ALIGNMENT for field in fields):
            return "blob layout is not aligned"
        if any(field.offset + field.num_bytes > self.layout.blob_bytes for field in fields):
            return "a field reaches past the end of the blob"
        if any(one.offset + one.num_bytes > other.offset for one, other in pairwise(fields)):
            return "two fields of a blob overlap"
        if len({field.name for field in fields}) != len(fields):
            return "two fields of a blob have one name"
        return ""

    def content_id(self) -> str:
        """blake3 over the canonical content: all but ``model_id`` and ``origin``."""
        content = self.model_dump(mode="json", exclude={"model_id", "origin"})
        return blake3.blake3(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode()

    def digest(self, expert: ExpertId) -> str:
        return self.layers[expert.layer].digests[expert.expert]

    def has(self, expert: ExpertId) -> bool:
        """Whether the model has this expert, whatever numbers a stranger gives."""
        return 0 <= expert.layer < self.num_layers and 0 <= expert.expert < self.layer_experts[expert.layer]

    @property
    def layer_experts(self) -> tuple[int, ...]:
        """Experts of every MoE layer; they differ where somebody pruned layers differently."""
        return tuple(len(layer.digests) for layer in self.layers)

    @property
    def num_blobs(self) -> int:
        return sum(self.layer_experts)

    @property
    def exists(self) -> Mask:
        """bool[L, E]: which entries of a table over experts stand for one."""
        return existing(self.layer_experts)

    @property
    def experts_bytes(self) -> int:
        """Bytes of all expert blobs."""
        return self.num_blobs * self.layout.blob_bytes

    @property
    def skeleton_bytes(self) -> int:
        return sum(file.num_bytes for file in self.skeleton)
