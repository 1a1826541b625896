"""The byte counts of one model, and those that a pack's manifest tells. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from premoe_runtime.formats.manifest import DTYPE_BYTES, Manifest
from premoe_runtime.offline.sizing.fields import SizedConfig, read_fields
from premoe_runtime.offline.sizing.numbers import name_of


@dataclass(frozen=True, slots=True)
class Shape:
    """Byte counts of one model: as a pack stores it, and as an engine holds it, which may unpack numbers.

    ``activation_token_bytes``: a step's peak per token, from the widest tensors alive at once in a block: hidden
    states in float32 and the model's dtype, top-k copies through the experts, queries, keys and values.
    ``expanded_token_bytes``: per token of all contexts, while a layer makes keys and values of latents (MLA).
    ``state_bytes``: of a sequence, in blocks that keep no keys and values.
    ``probed_bytes``: of the skeleton, what a process that probes holds for itself beside an engine's child.
    """

    top_k: int
    layer_experts: tuple[int, ...]
    blob_bytes: int
    """One expert in a pack, and in a cache of blobs."""
    slot_blob_bytes: int
    """One expert in a slot and in the host tier."""
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
    state_bytes: int = 0
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
    """Read byte counts off a manifest and ``config.json``: of a model in plain floats all of whose blocks keep keys and
    values; of others ``configured`` knows more. Raises CorruptData (no JSON), InvalidInput (fields).
    """
    fields = read_fields(SizedConfig, config_json, "config.json of the pack")
    blob = manifest.layout.blob_bytes
    skeleton = sum(file.num_bytes for file in manifest.skeleton if file.path.endswith(".safetensors"))
    expert_rows = max(field.shape[0] for field in manifest.layout.fields)
    name = name_of(manifest.dtype)
    return Shape(
        top_k=manifest.top_k,
        layer_experts=manifest.layer_experts,
        blob_bytes=blob,
        slot_blob_bytes=blob,
        stored_skeleton_bytes=skeleton,
        skeleton_bytes=skeleton,
        kv_token_bytes=fields.num_hidden_layers * fields.cached_size * DTYPE_BYTES[manifest.dtype],
        activation_token_bytes=activation_bytes(fields, manifest.top_k, expert_rows, DTYPE_BYTES[manifest.dtype]),
        logits_row_bytes=2 * 4 * fields.vocab_size,
        max_context=fields.max_context,
        numbers=name,
        held=name,
        expanded_token_bytes=fields.expanded_size * DTYPE_BYTES[manifest.dtype],
    )


def activation_bytes(fields: SizedConfig, top_k: int, expert_rows: int, item: int) -> int:
    """Of one token of a step; see ``Shape``."""
    hidden = fields.hidden_size
    attention = fields.query_size + 2 * fields.key_value_size
    return hidden * (4 + 3 * item) + item * (top_k * (2 * hidden + 2 * expert_rows) + attention)
