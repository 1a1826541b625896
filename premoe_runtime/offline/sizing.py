"""What fits into a memory size: pure arithmetic over a manifest and a config."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from premoe_runtime.families.spec import context_length
from premoe_runtime.formats.allocation import Splits, even_slots
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS, Budget, usual_budgets
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.manifest import DTYPE_BYTES, Dimension, Manifest
from premoe_runtime.residency.plan import whole_host_bytes

DEFAULT_CONTEXT = 4096
DEFAULT_ROWS = 8
STEP_TOKENS = 256
"""Prompt tokens that one step takes at most, beside one token of every running sequence."""
PROCESS_BYTES = 850 << 20
"""Main memory of a worker before it has a model: torch, transformers, gRPC (measured, torch 2.13 on Linux)."""


class SizedConfig(BaseModel):
    """The fields of ``config.json`` that decide memory, under the names that all families share.

    ``families.stock`` knows more, but brings torch, for which whoever asks for sizes should not wait.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: Dimension
    hidden_size: Dimension
    num_hidden_layers: int = Field(ge=1, le=10_000)
    num_attention_heads: Dimension
    num_key_value_heads: Dimension | None = None
    head_dim: Dimension | None = None
    kv_lora_rank: Dimension | None = None
    qk_nope_head_dim: int = Field(default=0, ge=0, le=1 << 24)
    qk_rope_head_dim: int = Field(default=0, ge=0, le=1 << 24)
    v_head_dim: int = Field(default=0, ge=0, le=1 << 24)
    max_position_embeddings: int | None = Field(default=None, ge=1)
    rope_parameters: dict[str, object] | None = None
    rope_scaling: dict[str, object] | None = None

    @property
    def head_size(self) -> int:
        if self.kv_lora_rank:
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_size

    @property
    def key_value_size(self) -> int:
        return (self.num_key_value_heads or self.num_attention_heads) * self.head_size

    @property
    def cached_size(self) -> int:
        """Numbers that a layer keeps of a token: keys and values, or MLA's latents."""
        return self.kv_lora_rank + self.qk_rope_head_dim if self.kv_lora_rank else 2 * self.key_value_size

    @property
    def expanded_size(self) -> int:
        """Numbers that one layer at a time makes of a token's latents; 0 where it keeps keys and values."""
        return self.num_attention_heads * (self.head_size + self.v_head_dim) if self.kv_lora_rank else 0

    @property
    def max_context(self) -> int | None:
        """Longest sequence, rope scaling included."""
        rope = self.rope_scaling or self.rope_parameters
        return self.max_position_embeddings and context_length(self.max_position_embeddings, rope)


@dataclass(frozen=True, slots=True)
class Shape:
    """Byte counts of one model.

    ``activation_token_bytes``: a step's peak per token, from the widest tensors alive at once in a block: hidden
    states in float32 and the model's dtype, top-k copies through the experts, queries, keys and values.
    ``expanded_token_bytes``: per token of all contexts, while a layer makes keys and values of latents (MLA).
    """

    top_k: int
    layer_experts: tuple[int, ...]
    blob_bytes: int
    skeleton_bytes: int
    kv_token_bytes: int
    activation_token_bytes: int
    logits_row_bytes: int
    max_context: int | None
    expanded_token_bytes: int = 0

    @property
    def context_token_bytes(self) -> int:
        """Of each token of a context: what all layers keep, and what one at a time makes of it."""
        return self.kv_token_bytes + self.expanded_token_bytes

    @property
    def slot_bytes(self) -> int:
        """One slot in every layer."""
        return len(self.layer_experts) * self.blob_bytes

    @property
    def num_experts(self) -> int:
        """Of the layer that has the most."""
        return max(self.layer_experts)

    @property
    def experts_bytes(self) -> int:
        """Bytes of all expert blobs."""
        return sum(self.layer_experts) * self.blob_bytes


@dataclass(frozen=True, slots=True)
class SizeRequest:
    """``rows`` sequences of ``context`` tokens run at once; ``spare`` slots a layer beyond the kept experts.

    ``splits``: those of a pattern set that shares its budgets over the layers; the bytes are the same without.
    """

    memory: int
    budgets: tuple[Budget, ...] = ()
    context: int | None = None
    rows: int = DEFAULT_ROWS
    spare: int = DEFAULT_SPARE_SLOTS
    splits: Splits | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """One budget's bill in bytes, and whether it fits; ``reason`` says why not, and what would help.

    slots, layer_slots  a layer on average, and of every layer
    experts             bytes of all slots
    host                main memory beside: a blob for each slot, parked keys and values, the process itself
    """

    budget: Budget
    slots: int
    layer_slots: tuple[int, ...]
    experts: int
    host: int
    total: int
    fits: bool
    max_context: int
    """Longest context at which this budget fits with the same rows; 0 when none does."""
    reason: str


@dataclass(frozen=True, slots=True)
class SizeReport:
    """What every budget shares, one ``Fit`` a budget, and the most that fits."""

    memory: int
    context: int
    rows: int
    skeleton: int
    kv: int
    workspace: int
    all_experts: int
    """Bytes of all expert blobs: what the host tier holds when nothing is to be read twice."""
    max_slots: int
    """Most slots a layer that fit; at most the number of experts."""
    fits: tuple[Fit, ...]

    @property
    def largest(self) -> Fit | None:
        """The fitting budget that keeps the most experts."""
        fitting = [fit for fit in self.fits if fit.fits]
        return max(fitting, key=lambda fit: (fit.budget.kept, fit.budget.active), default=None)


def shape_of(manifest: Manifest, config_json: bytes) -> Shape:
    """Read byte counts off a manifest and ``config.json``. Raises CorruptData (no JSON), InvalidInput (fields)."""
    try:
        config = SizedConfig.model_validate_json(config_json)
    except ValidationError as error:
        first = error.errors()[0]
        kind = InvalidInput if first["loc"] else CorruptData
        place = ".".join(["config.json of the pack", *map(str, first["loc"])])
        raise kind(f"{place}: {first['msg']}", reason="CONFIG_INVALID") from error
    item = DTYPE_BYTES[manifest.dtype]
    hidden = config.hidden_size
    expert_rows = max(field.shape[0] for field in manifest.layout.fields)
    attention = config.query_size + 2 * config.key_value_size
    return Shape(
        top_k=manifest.top_k,
        layer_experts=manifest.layer_experts,
        blob_bytes=manifest.layout.blob_bytes,
        skeleton_bytes=sum(file.num_bytes for file in manifest.skeleton if file.path.endswith(".safetensors")),
        kv_token_bytes=config.num_hidden_layers * config.cached_size * item,
        expanded_token_bytes=config.expanded_size * item,
        activation_token_bytes=hidden * (4 + 3 * item)
        + item * (manifest.top_k * (2 * hidden + 2 * expert_rows) + attention),
        logits_row_bytes=2 * 4 * config.vocab_size,
        max_context=config.max_context,
    )


def size(shape: Shape, request: SizeRequest) -> SizeReport:
    """Skeleton + slots × layers × blob + KV bytes × context × rows + workspace, against the memory given.

    Raises InvalidInput: a budget that the model cannot run, a context beyond the model's, counts below 1.
    """
    context = _check(shape, request)
    kv = shape.context_token_bytes * context * request.rows
    workspace = (STEP_TOKENS + request.rows) * shape.activation_token_bytes + request.rows * shape.logits_row_bytes
    rest = request.memory - shape.skeleton_bytes - kv - workspace
    max_slots = shape.num_experts if rest >= shape.experts_bytes else max(0, rest // shape.slot_bytes)
    budgets = request.budgets or usual_budgets(shape.top_k, shape.num_experts)
    return SizeReport(
        memory=request.memory,
        context=context,
        rows=request.rows,
        skeleton=shape.skeleton_bytes,
        kv=kv,
        workspace=workspace,
        all_experts=shape.experts_bytes,
        max_slots=max_slots,
        fits=tuple(_fit(shape, request, budget, kv, workspace, max_slots) for budget in budgets),
    )


def _fit(shape: Shape, request: SizeRequest, budget: Budget, kv: int, workspace: int, max_slots: int) -> Fit:
    slots = min(budget.kept + request.spare, shape.num_experts)
    layer_slots = even_slots(slots, shape.layer_experts, "shared")
    if request.splits is not None:
        layer_slots = request.splits.layer_slots(budget.kept, slots - budget.kept)
    experts = sum(layer_slots) * shape.blob_bytes
    base = shape.skeleton_bytes + experts + workspace
    room = request.memory - base
    longest = max(0, room // (shape.context_token_bytes * request.rows)) if room > 0 else 0
    longest = min(longest, shape.max_context) if shape.max_context else longest
    fits = base + kv <= request.memory
    return Fit(
        budget=budget,
        slots=slots,
        layer_slots=layer_slots,
        experts=experts,
        host=whole_host_bytes(shape.blob_bytes, sum(layer_slots))
        + kv * shape.kv_token_bytes // shape.context_token_bytes
        + PROCESS_BYTES,
        total=base + kv,
        fits=fits,
        max_context=longest,
        reason="" if fits else _why(shape, request, slots, longest, max_slots),
    )


def _why(shape: Shape, request: SizeRequest, slots: int, longest: int, max_slots: int) -> str:
    if shape.skeleton_bytes > request.memory:
        return "the skeleton alone (attention, embeddings, routers) is larger than the memory"
    if longest >= 1:
        return f"the keys and values are too large; it fits with a context of {longest} or fewer sequences"
    if max_slots >= 1:
        return f"needs {slots} slots a layer, {max_slots} fit; keep fewer experts"
    return "no slot fits beside skeleton, keys and values, and workspace; give more memory, or a shorter context"


def _check(shape: Shape, request: SizeRequest) -> int:
    for name, value, least in (("memory", request.memory, 1), ("rows", request.rows, 1), ("spare", request.spare, 0)):
        if value < least:
            raise InvalidInput(f"{name} is {value}, but must be at least {least}", reason="SIZE_INVALID")
    for budget in request.budgets:
        budget.check(top_k=shape.top_k, num_experts=shape.num_experts)
    return settled_context(shape, request.context)


def settled_context(shape: Shape, wanted: int | None) -> int:
    """Tokens of a sequence: as wanted, else the model's, at most 4096. Raises InvalidInput beyond the model's own."""
    if wanted is None:
        return min(DEFAULT_CONTEXT, shape.max_context or DEFAULT_CONTEXT)
    if wanted < 1 or (shape.max_context is not None and wanted > shape.max_context):
        raise InvalidInput(
            f"context {wanted} is outside 1 to {shape.max_context}, the model's own", reason="CONTEXT_INVALID"
        )
    return wanted
