"""What the owner of an engine asks of a vLLM worker between two steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed import get_tp_group

from premoe_runtime.engines.vllm.mass import RetainedMass
from premoe_runtime.engines.vllm.rows import TokenRows
from premoe_runtime.engines.vllm.slots import PackedSlots, PackingCopier
from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import Copied, merged
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.plan import STAGING_BYTES
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.residency.swap import alone, bring_by

SLOTS = "premoe_slots"
"""Attribute of a model runner that holds its ``SlotModel``."""


@dataclass(frozen=True, slots=True)
class SlotModel:
    """A worker's slots, which rows its requests are under, and what these retain."""

    source: ExpertSource
    slots: PackedSlots
    rows: TokenRows
    mass: RetainedMass


class SlotWorker:
    """Mixed into vLLM's worker class; called by ``collective_rpc``, which runs between two steps of the engine."""

    model_runner: Any

    @property
    def _premoe(self) -> SlotModel:
        model: SlotModel = getattr(self.model_runner, SLOTS)
        return model

    def premoe_bring(
        self,
        rows: Mapping[int | str, Sequence[Collection[int]]],
        pinned: Sequence[Collection[int]] = (),
        semantics: Semantics = "selection",
    ) -> list[list[int]]:
        """Make mask rows servable in place: what they keep becomes resident, and the rows are written.

        ``rows``: kept experts of every MoE layer, by the row's number, which JSON makes a string; ``pinned``: experts
        that may not give way, such as those of rows whose requests go on. Who calls knows which rows no request is
        under: a worker hears of requests late, and of waiting ones not at all. Returns the slot table. All is planned
        before anything is written. Raises Exhausted where slots do not suffice, and what reading raises; of several
        ranks the last one raises.
        """
        model = self._premoe
        try:
            self._bring(model, {int(row): kept for row, kept in rows.items()}, pinned, semantics)
        except Exception as error:
            _raise_once(model, error)
        return model.slots.slot_table()

    def _bring(
        self,
        model: SlotModel,
        rows: Mapping[int, Sequence[Collection[int]]],
        pinned: Sequence[Collection[int]],
        semantics: Semantics,
    ) -> None:
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
            together=_together(model),
        )

    def premoe_check(self) -> None:
        """Raise CorruptData when tables contradict each other or a slot's bytes are not its expert's."""
        model = self._premoe
        fault = _together(model)(Copied(frozenset(), error=_fault(model))).error
        if fault is not None:
            _raise_once(model, fault)

    def premoe_addresses(self) -> list[list[int]]:
        """Where each layer's weights lie: never anywhere else."""
        return [[weight.data_ptr() for weight in layer.values()] for layer in self._premoe.slots.weights]

    def premoe_weight_bytes(self) -> int:
        """Bytes of all slots, empty ones included."""
        return sum(weight.nbytes for layer in self._premoe.slots.weights for weight in layer.values())


def _together(model: SlotModel) -> Callable[[Copied], Copied]:
    """Makes of what this rank has done what all have; each calls it at the same time."""
    if model.slots.shape.ranks == 1:
        return alone
    group = get_tp_group()

    def gather(copied: Copied) -> Copied:
        parts: list[Any] = [None] * group.world_size
        torch.distributed.all_gather_object(parts, copied, group=group.cpu_group)
        return merged(parts)

    return gather


def _raise_once(model: SlotModel, error: Exception) -> None:
    """On the last rank: vLLM reads answers in order and up to the first error, so that others would be read as those of
    the next call.
    """
    if model.slots.shape.ranks == 1 or get_tp_group().is_last_rank:
        raise error


def _fault(model: SlotModel) -> Exception | None:
    try:
        model.slots.check_integrity()
    except CorruptData as error:
        return error
    return None


def _experts(kept: Sequence[Collection[int]]) -> list[ExpertId]:
    return [ExpertId(layer, expert) for layer, experts in enumerate(kept) for expert in experts]
