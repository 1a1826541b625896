"""The byte counts of one model: off a pack's manifest, or off the outline that a config gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from premoe_runtime.formats.manifest import BLOB_ALIGNMENT, DTYPE_BYTES, FIELD_ALIGNMENT, Manifest
from premoe_runtime.offline.sizing.fields import SizedConfig, read_fields
from premoe_runtime.offline.sizing.numbers import DTYPES, Numbers
from premoe_runtime.offline.sizing.outline import Outline
from premoe_runtime.packs.layout import align


@dataclass(frozen=True, slots=True)
class Shape:
    """Byte counts of one model: as a pack stores it, and as an engine holds it, which may unpack numbers.

    ``activation_token_bytes``: a step's peak per token, from the widest tensors alive at once in a block: hidden
    states in float32 and the model's dtype, top-k copies through the experts, queries, keys and values.
    ``expanded_token_bytes``: per token of all contexts, while a layer makes keys and values of latents (MLA).
    ``probed_bytes``: of the skeleton, what a process that probes holds for itself beside an engine's child.
    """

    top_k: int
    layer_experts: tuple[int, ...]
    blob_bytes: int
    """One expert in a pack, in a cache, and in the host tier."""
    slot_blob_bytes: int
    """One expert in a slot."""
    stored_skeleton_bytes: int
    skeleton_bytes: int
    """All but the routed experts, as an engine holds it."""
    kv_token_bytes: int
    activation_token_bytes: int
    logits_row_bytes: int
    max_context: int | None
    numbers: str
    """The number format of the weights as they are stored."""
    held: str
    """That of the weights as an engine holds them."""
    expanded_token_bytes: int = 0
    probed_bytes: int = 0
    unserved: str = ""
    """Why no engine runs the model; empty when one does."""

    @property
    def context_token_bytes(self) -> int:
        """Of each token of a context: what all layers keep, and what one at a time makes of it."""
        return self.kv_token_bytes + self.expanded_token_bytes

    @property
    def slot_bytes(self) -> int:
        """One slot in every layer."""
        return len(self.layer_experts) * self.slot_blob_bytes

    @property
    def num_experts(self) -> int:
        """Of the layer that has the most."""
        return max(self.layer_experts)

    @property
    def experts_bytes(self) -> int:
        """All experts in slots."""
        return sum(self.layer_experts) * self.slot_blob_bytes

    @property
    def stored_experts_bytes(self) -> int:
        """All expert blobs of a pack."""
        return sum(self.layer_experts) * self.blob_bytes

    def weights_bytes(self, kept: int) -> int:
        """Stored bytes of the model with so many experts a layer and no spare slots: what papers call its memory."""
        experts = sum(min(kept, count) for count in self.layer_experts)
        return self.stored_skeleton_bytes + experts * self.blob_bytes


def shape_of(manifest: Manifest, config_json: bytes) -> Shape:
    """Read byte counts off a manifest and ``config.json``. Raises CorruptData (no JSON), InvalidInput (fields)."""
    fields = read_fields(SizedConfig, config_json, "config.json of the pack")
    blob = manifest.layout.blob_bytes
    skeleton = sum(file.num_bytes for file in manifest.skeleton if file.path.endswith(".safetensors"))
    expert_rows = max(field.shape[0] for field in manifest.layout.fields)
    name = next((name for name, dtype in DTYPES.items() if dtype == manifest.dtype), manifest.dtype)
    return Shape(
        top_k=manifest.top_k,
        layer_experts=manifest.layer_experts,
        blob_bytes=blob,
        slot_blob_bytes=blob,
        stored_skeleton_bytes=skeleton,
        skeleton_bytes=skeleton,
        kv_token_bytes=fields.num_hidden_layers * fields.cached_size * DTYPE_BYTES[manifest.dtype],
        activation_token_bytes=_activation(fields, manifest.top_k, expert_rows, DTYPE_BYTES[manifest.dtype]),
        logits_row_bytes=2 * 4 * fields.vocab_size,
        max_context=fields.max_context,
        numbers=name,
        held=name,
        expanded_token_bytes=fields.expanded_size * DTYPE_BYTES[manifest.dtype],
    )


def outlined_shape(outline: Outline, numbers: Numbers) -> Shape:
    """Byte counts of a model that nobody has packed, its weights in this number format."""
    fields, item = outline.fields, numbers.item
    packed, plain = (
        _blob_bytes(_tensors(name, shape, one) for name, shape in outline.experts.items())
        for one in (numbers, Numbers(numbers.dtype))
    )
    stored = held = probed = 0
    for tensor in outline.skeleton:
        full = prod(tensor.shape) * item
        held += full
        probed += full if tensor.probed else 0
        stored += full
        if tensor.linear and not numbers.experts_only:
            stored += sum(_tensors(tensor.name, tensor.shape, numbers)) - full
    expert_rows = max(shape[0] for shape in outline.experts.values())
    return Shape(
        top_k=outline.top_k,
        layer_experts=outline.layer_experts,
        blob_bytes=packed,
        slot_blob_bytes=plain,
        stored_skeleton_bytes=stored,
        skeleton_bytes=held,
        kv_token_bytes=fields.num_hidden_layers * fields.cached_size * item,
        activation_token_bytes=_activation(fields, outline.top_k, expert_rows, item),
        logits_row_bytes=2 * 4 * fields.vocab_size,
        max_context=fields.max_context,
        numbers=numbers.name,
        held=Numbers(numbers.dtype).name,
        expanded_token_bytes=fields.expanded_size * item,
        probed_bytes=probed,
        unserved=outline.unserved,
    )


def with_probe(shape: Shape, outline: Outline, numbers: Numbers) -> Shape:
    """A pack's shape with what a probing process holds, which only the outline of its config tells."""
    return replace(shape, probed_bytes=outlined_shape(outline, numbers).probed_bytes)


def _tensors(name: str, shape: tuple[int, ...], numbers: Numbers) -> tuple[int, ...]:
    """Bytes of one tensor and of what belongs to it. Experts' biases are no matrices, and never packed."""
    packed = numbers.of(name) if len(shape) == 2 else None
    return (prod(shape) * numbers.item,) if packed is None else packed.parts(*shape)


def _blob_bytes(fields: Iterable[tuple[int, ...]]) -> int:
    end = 0
    for parts in fields:
        for size in parts:
            end = align(end, FIELD_ALIGNMENT) + size
    return align(end, BLOB_ALIGNMENT)


def _activation(fields: SizedConfig, top_k: int, expert_rows: int, item: int) -> int:
    hidden = fields.hidden_size
    attention = fields.query_size + 2 * fields.key_value_size
    return hidden * (4 + 3 * item) + item * (top_k * (2 * hidden + 2 * expert_rows) + attention)
