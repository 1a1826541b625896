"""A stock transformers model whose routed experts live in slots and whose routers are restricted to them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from premoe_runtime.engines.hf import attention
from premoe_runtime.engines.hf.experts import slot_experts
from premoe_runtime.engines.hf.rotary import follow_lengths
from premoe_runtime.engines.hf.router import RestrictedRouter
from premoe_runtime.engines.hf.skeleton import fill_skeleton
from premoe_runtime.engines.hf.step_state import Recorder, StepState
from premoe_runtime.engines.hf.tokenizer import load_tokenizer
from premoe_runtime.families import stock
from premoe_runtime.families.registry import FAMILIES, parse_config, parse_json_object
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.numbers.registry import numbers_of
from premoe_runtime.packs.consistency import contradiction, refuse
from premoe_runtime.residency.blob_fields import torch_dtype
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.slot_store import SlotStore
from premoe_runtime.residency.source import ExpertSource

CONFIG_FILE = "skeleton/config.json"
GENERATION_FILE = "skeleton/generation_config.json"
log = logging.getLogger(__name__)


class SlotModel:
    """The model, its store, and what the coming forward runs under. One thread at a time.

    Call ``model`` as any transformers causal LM: padded batches, 4-D masks and caches are its own affair; every token
    of ``input_ids`` (padding included, row-major) has its entry in ``steps``.
    """

    def __init__(self, model: PreTrainedModel, store: SlotStore, state: StepState, source: ExpertSource) -> None:
        self.model = model
        self.store = store
        self.source = source
        self._state = state

    @property
    def manifest(self) -> Manifest:
        return self.store.shape.manifest

    @property
    def device(self) -> torch.device:
        return self.store.device

    @property
    def short_tokens(self) -> int | None:
        """Longest sequence under longrope's short factors, beyond which all its keys are others; None: no limit."""
        rope = stock.rope_of(self.model.config.get_text_config()) or {}
        return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See ``load_tokenizer``; made on first use."""
        return load_tokenizer(self.source)

    def steps(self, rows: Sequence[int] | int, active: Sequence[int] | int | None = None) -> ExitStack:
        """Fix mask row and number of active experts (default top-k) of each of T flattened tokens.

        Holds for the coming forwards until it is called again; single ones fit any number of tokens. As a context it
        falls back to row 0 at the end. Raises InvalidInput for lengths that differ and for ``active`` outside 1..top-k;
        a forward over another number of tokens than T raises it too.
        """
        top_k = self.manifest.top_k
        self._state.set(rows, top_k if active is None else active)
        after = ExitStack()
        after.callback(self._state.set, 0, top_k)
        return after

    def retained_mass(self) -> torch.Tensor:
        """f32[T] of the last forward: the full router's probability mass on kept experts, mean over MoE layers."""
        return self._state.retained_mass()

    def record(self, recorder: Recorder | None) -> None:
        """Call ``recorder(layer, logits f32[T, n], ids i64[T, k], weights [T, k])`` per MoE layer; None ends it.

        ``ids`` are expert ids, ranked; n, the layer's number of experts, stands for "no expert".
        """
        self._state.recorder = recorder


def load_slot_model(
    source: ExpertSource,
    *,
    slots: int | Sequence[int],
    max_rows: int = 64,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> SlotModel:
    """Build the stock class on the meta device, put slots and restricted routers in, and fill the skeleton.

    ``slots``: one number for all MoE layers, or one for each; no expert is read or allocated beyond them. ``dtype``
    casts everything, blobs on arrival; default: the checkpoint's own. All mask rows start empty. Raises InvalidInput,
    CorruptData, Exhausted, and what the source raises.
    """
    manifest = source.manifest()
    model, facts = bare_model(source)
    shape = SlotShape.of(manifest, slots=slots, max_rows=max_rows, dtype=dtype)
    _say_numbers(shape, dtype or torch_dtype(manifest.dtype))
    store = SlotStore(shape, device)
    state = put_slots_in(model, facts, store)
    fill_skeleton(model, facts, source, device=store.device, dtype=dtype or torch_dtype(manifest.dtype))
    return SlotModel(model, store, state, source)


def put_slots_in(model: PreTrainedModel, facts: MoeModel, store: SlotStore) -> StepState:
    """Put the store's slots and restricted routers in the place of every MoE layer's own; what steps run under."""
    manifest, spec = store.shape.manifest, facts.spec
    state = StepState(store.mask, store.sliced, manifest.top_k, manifest.layer_experts)
    for layer, block in enumerate(facts.blocks):
        sparse: Any = stock.sparse_part(model, spec, block)
        router = getattr(sparse, spec.router_module)
        setattr(
            sparse,
            spec.router_module,
            RestrictedRouter(layer, spec, manifest.router, router, store.lut[layer], state),
        )
        if spec.chooser:
            setattr(sparse, spec.chooser, lambda hidden_states, routed: routed)
        stock_experts = getattr(sparse, spec.experts_module)
        setattr(sparse, spec.experts_module, slot_experts(store.arenas[layer], stock_experts))
    if spec.longrope:
        follow_lengths(model.get_decoder().rotary_emb)
    return state


def _say_numbers(shape: SlotShape, dtype: torch.dtype) -> None:
    """One line of the log about weights that are not computed with as they are stored."""
    if shape.manifest.numbers is not None:
        log.info(
            "weights are stored as %s and dequantised to %s on arrival: an expert's %d bytes become %d",
            numbers_of(shape.manifest.numbers).title,
            str(dtype).removeprefix("torch."),
            shape.layout.stored.blob_bytes,
            shape.blob_bytes,
        )


def bare_model(source: ExpertSource) -> tuple[PreTrainedModel, MoeModel]:
    """The stock class of the pack's family on the meta device, with its sampling defaults, and what it must hold.

    Raises InvalidInput, CorruptData (the manifest says otherwise than config.json).
    """
    manifest = source.manifest()
    if manifest.family not in FAMILIES:
        raise InvalidInput(
            f"family {manifest.family!r} cannot be run; supported: {', '.join(sorted(FAMILIES))}",
            reason="UNKNOWN_FAMILY",
        )
    spec, data = parse_config(source.read_file(CONFIG_FILE), CONFIG_FILE)
    config: Any = stock.stock_config(spec, data, CONFIG_FILE)
    config.output_router_logits = False
    config._attn_implementation = attention.NAME
    model = stock.build(config, CONFIG_FILE)
    facts = stock.describe(spec, model, CONFIG_FILE)
    refuse(contradiction(manifest, facts))
    if any(file.path == GENERATION_FILE for file in manifest.skeleton):
        sampling = parse_json_object(source.read_file(GENERATION_FILE), GENERATION_FILE)
        model.generation_config = stock.generation_config(sampling, GENERATION_FILE)
    return model, facts.cut_to(manifest.layer_experts)
