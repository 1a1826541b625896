"""What the owner of an engine asks of a vLLM worker between two steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from premoe_runtime.engines.vllm.rows import TokenRows
from premoe_runtime.engines.vllm.slots import PackedSlots, PackingCopier
from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.plan import STAGING_BYTES
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.residency.swap import bring_by

SLOTS = "premoe_slots"
"""Attribute of a model runner that holds its ``SlotModel``."""


@dataclass(frozen=True, slots=True)
class SlotModel:
    """A worker's slots, and which rows its requests are under."""

    source: ExpertSource
    slots: PackedSlots
    rows: TokenRows


class SlotWorker:
    """Mixed into vLLM's worker class; called by ``collective_rpc``, which runs between two steps of the engine."""

    model_runner: Any

    @property
    def _premoe(self) -> SlotModel:
        model: SlotModel = getattr(self.model_runner, SLOTS)
        return model

    def premoe_bring(
        self,
        rows: Mapping[int, Sequence[Collection[int]]],
        pinned: Sequence[Collection[int]] = (),
        semantics: Semantics = "selection",
    ) -> list[list[int]]:
        """Make mask rows servable in place: what they keep becomes resident, and the rows are written.

        ``rows``: kept experts of every MoE layer; ``pinned``: experts that may not give way, such as those of rows
        whose requests go on. Who calls knows which rows no request is under: a worker hears of requests late, and of
        waiting ones not at all. Returns the slot table. All is planned before anything is written. Raises Exhausted
        where slots do not suffice, and what reading raises.
        """
        model = self._premoe
        needed = frozenset(expert for kept in rows.values() for expert in _experts(kept))
        arena = HostArena(model.slots.shape.blob_bytes, STAGING_BYTES)
        tables = {row: dict(enumerate(kept)) for row, kept in rows.items()}
        bring_by(
            PackingCopier(model.slots, arena).run,
            model.slots,
            arena,
            model.source,
            needed,
            tables,
            pinned=frozenset(_experts(pinned)),
            semantics=semantics,
        )
        return model.slots.slot_table()

    def premoe_check(self) -> None:
        """Raise CorruptData when tables contradict each other or a slot's bytes are not its expert's."""
        self._premoe.slots.check_integrity()

    def premoe_addresses(self) -> list[list[int]]:
        """Where each layer's weights lie: never anywhere else."""
        return [[weight.data_ptr() for weight in layer.values()] for layer in self._premoe.slots.weights]

    def premoe_weight_bytes(self) -> int:
        """Bytes of all slots, empty ones included."""
        return sum(weight.nbytes for layer in self._premoe.slots.weights for weight in layer.values())


def _experts(kept: Sequence[Collection[int]]) -> list[ExpertId]:
    return [ExpertId(layer, expert) for layer, experts in enumerate(kept) for expert in experts]
