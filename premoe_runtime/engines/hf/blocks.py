"""A model that is never whole: one transformer block at a time has its weights, experts included.

Embedding, final norm and head stay. The others' bytes are read from the pack again whenever their block's turn comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from transformers import PreTrainedModel

from premoe_runtime.engines.hf.model import SlotModel, bare_model, put_slots_in
from premoe_runtime.engines.hf.skeleton import assign, bytes_of, empty_tensor, make_ready, place
from premoe_runtime.engines.hf.step_state import StepState
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.packs.checkpoint import read_header
from premoe_runtime.packs.consistency import refuse, skeleton_contradiction
from premoe_runtime.packs.contents import TensorInfo
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.residency.blob_fields import torch_dtype
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.slot_store import SlotStore
from premoe_runtime.residency.swap import bring


def load_block_model(
    reader: PackReader, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> BlockModel:
    """Check the skeleton's files and load what belongs to no block; see ``load_slot_model`` for what it raises."""
    manifest = reader.manifest()
    model, facts = bare_model(reader)
    tensors: list[TensorInfo] = []
    for file in manifest.skeleton:
        if file.path.endswith(".safetensors"):
            reader.check_file(file)
            tensors += read_header(reader.store, reader.path(file.path), file.num_bytes)
    tensors.sort(key=lambda tensor: tensor.name)  # those that stand for one weight follow each other
    refuse(skeleton_contradiction(manifest, facts, tensors))
    shape = SlotShape.of(manifest, slots=manifest.num_experts, max_rows=2, dtype=dtype)
    store = SlotStore(shape, device, one_layer=True)
    store.set_row(0, manifest.exists)
    state = put_slots_in(model, facts, store)
    return BlockModel(model, store, state, reader, facts, tensors, dtype or torch_dtype(manifest.dtype))


class BlockModel(SlotModel):
    """A slot model whose block ``load`` was called for can run, and no other."""

    def __init__(
        self,
        model: PreTrainedModel,
        store: SlotStore,
        state: StepState,
        reader: PackReader,
        facts: MoeModel,
        tensors: list[TensorInfo],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(model, store, state, reader)
        self._reader, self._facts, self._dtype = reader, facts, dtype
        self._tensors = tensors
        self._loaded: int | None = None
        self._place(None)
        make_ready(model, facts, device=self.device, dtype=dtype)

    @property
    def num_blocks(self) -> int:
        return self._facts.num_blocks

    def steps(self, rows: Sequence[int] | int, active: Sequence[int] | int | None = None) -> ExitStack:
        """As of any slot model, with one row and one width for all tokens."""
        before = super().steps(rows, active)
        # Routers see what the tables say when a forward begins, and the first one may not be the one to run.
        self._state.take(0)
        after = ExitStack()
        after.callback(self._state.take, 0)
        after.enter_context(before)
        return after

    def block_mass(self, tokens: int) -> torch.Tensor:
        """f32[tokens] of the block's last forward: the full router's probability mass on kept experts.

        0 where the block has no experts.
        """
        if self._loaded not in self._facts.blocks:
            return torch.zeros(tokens, device=self.device)
        mass = self._state.masses[self._facts.blocks.index(self._loaded)]
        return torch.ones(tokens, device=self.device) if mass is None else mass.clamp(max=1.0)

    def load(self, block: int) -> None:
        """Give one block its weights and the others none. Raises CorruptData, Exhausted, Unavailable."""
        if self._loaded == block:
            return
        if self._loaded is not None:
            for known in self._facts.skeleton.values():
                if block_of(self._facts, known.memory) == self._loaded:
                    assign(self.model, known.memory, torch.empty(known.shape, device="meta"))
        self._loaded = None
        self.store.retire(self.store.resident())
        self._place(block)
        if block in self._facts.blocks:
            layer = self._facts.blocks.index(block)
            experts = range(self._facts.layer_experts[layer])
            bring(self.store, self.source, {ExpertId(layer, expert) for expert in experts})
        self._state.take(0)
        self._loaded = block

    def _place(self, block: int | None) -> None:
        place(
            self.model,
            self._facts,
            self._read(block),
            stored=torch_dtype(self.manifest.dtype),
            device=self.device,
            dtype=self._dtype,
        )

    def _read(self, block: int | None) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
        """The skeleton's tensors of a block, or of none, one by one."""
        for entry in self._tensors:
            if block_of(self._facts, entry.name) == block:
                tensor = empty_tensor(entry)
                self._reader.store.read_into(entry.file, entry.offset, [bytes_of(tensor)])
                yield entry, tensor


def block_of(facts: MoeModel, name: str) -> int | None:
    """The block that a tensor belongs to, by its name on disk or in the module tree; None: to no block."""
    found = re.search(rf"(?:^|\.){facts.spec.layers.rpartition('.')[2]}\.(\d+)\.", name)
    return int(found[1]) if found else None
