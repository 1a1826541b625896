"""The expert bank: all slots of a model, and the tables that say which expert lies where and who may use it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.residency.arena import SlotArena
from premoe_runtime.residency.host_tier import HostTier, digest_of
from premoe_runtime.residency.plan import SwapPlan, plan_swap
from premoe_runtime.residency.slot_layout import SlotLayout

Semantics = Literal["selection", "slice"]
Kept = npt.NDArray[np.bool_] | torch.Tensor | Mapping[int, Collection[int]]
"""Experts a mask row keeps: bool[L, E], or the kept experts of every MoE layer."""

STAGING_BYTES = 64 << 20
"""Host tier when none is asked for: room to pass blobs through, hardly a cache."""

EMPTY = -1


def slots_of_layers(slots: int | Sequence[int], num_layers: int, num_experts: int) -> tuple[int, ...]:
    """Slots of every MoE layer, at most one an expert. Raises InvalidInput: fewer than two, other layers."""
    counts = (slots,) * num_layers if isinstance(slots, int) else tuple(slots)
    if len(counts) != num_layers:
        raise InvalidInput(
            f"slots are given for {len(counts)} layers, the model has {num_layers}", reason="SLOTS_SHAPE"
        )
    if min(counts) < 2:
        raise InvalidInput(f"{min(counts)} slots in a layer are too few; give at least 2", reason="SLOTS_TOO_FEW")
    return tuple(min(count, num_experts) for count in counts)


@dataclass(slots=True)
class Ticket:
    """A swap under way. ``retired_at``: CUDA event after the last step that could read the victims."""

    plan: SwapPlan
    retired_at: torch.cuda.Event | None
    copied: bool = False


class ExpertBank:
    """Slots of every MoE layer, the look-up tables and the mask table.

    ``slots``: how many each MoE layer has. ``lut``: i64[L, E + 1], expert -> slot; a layer's ``slots`` means absent,
    and entry E is the "no expert" sentinel.
    ``mask``: f32[L, P, E], 0 where a row keeps an expert *and* it is resident, else -inf. ``sliced``: bool[P].
    Their addresses never change. Tables are written by ``retire``, ``publish``, ``set_row`` and ``clear_row`` only,
    which belong between two steps, on the engine's thread; everything else is safe from any thread.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        slots: int | Sequence[int],
        max_rows: int = 64,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        host_bytes: int | None = None,
    ) -> None:
        if max_rows < 1:
            raise InvalidInput("max_rows must be at least 1", reason="ROWS_TOO_FEW")
        self.manifest = manifest
        self.device = torch.device(device)
        self.num_layers, self.num_experts = manifest.num_layers, manifest.num_experts
        self.slots = slots_of_layers(slots, self.num_layers, self.num_experts)
        self.max_rows = max_rows
        self.layout = SlotLayout.of(manifest.layout, dtype)
        self.arenas = [SlotArena(count, self.layout.held, self.device) for count in self.slots]
        self.host = HostTier(
            self.layout.blob_bytes,
            STAGING_BYTES if host_bytes is None else host_bytes,
            page_locked=self.device.type == "cuda",
        )
        self.generation = 0
        self.transfers = threading.Lock()
        """Held while one swap moves bytes: two at once would only share the same bandwidth."""
        shape = (self.num_layers, self.num_experts)
        self.lut = self._absent().to(self.device)
        self.mask = torch.full((shape[0], max_rows, shape[1]), -torch.inf, device=self.device)
        self.sliced = torch.zeros(max_rows, dtype=torch.bool, device=self.device)
        self._lock = threading.RLock()
        self._owner = [np.full(count, EMPTY, dtype=np.int64) for count in self.slots]
        self._slot_of: dict[ExpertId, int] = {}
        self._kept = np.zeros((max_rows, *shape), dtype=np.bool_)
        self._recency: dict[ExpertId, int] = {}
        self._clock = 0
        # By identity: two admissions that need nothing have equal plans.
        self._tickets: dict[int, Ticket] = {}
        self._held_digests: dict[ExpertId, str] = {}

    @property
    def device_bytes(self) -> int:
        """Bytes of all slots, empty ones included."""
        return sum(arena.num_bytes for arena in self.arenas)

    @property
    def host_bytes(self) -> int:
        """Bytes of the host tier, empty room included."""
        return self.host.num_bytes

    @property
    def blob_bytes(self) -> int:
        """Bytes of one blob in a slot."""
        return self.layout.blob_bytes

    def resident(self) -> frozenset[ExpertId]:
        """Published experts: those that a mask row may use."""
        with self._lock:
            return frozenset(self._slot_of)

    def slot_table(self) -> list[list[int]]:
        """Per layer and slot the published expert, or -1."""
        with self._lock:
            return [[int(expert) for expert in row] for row in self._owner]

    def plan(self, needed: AbstractSet[ExpertId], pinned: AbstractSet[ExpertId] = frozenset()) -> SwapPlan:
        """``plan_swap`` over the present tables.

        Raises Exhausted; Conflict while another swap brings one of these experts (plan again once that is published);
        InvalidInput for an expert that the model lacks.
        """
        for expert in needed:
            if not (0 <= expert.layer < self.num_layers and 0 <= expert.expert < self.num_experts):
                raise InvalidInput(f"the model has no {expert}", reason="EXPERT_UNKNOWN")
        with self._lock:
            if arriving := sorted(needed & self._arriving()):
                raise Conflict(f"another swap is bringing {arriving[0]}; wait for it", reason="EXPERT_ARRIVING")
            return plan_swap(
                needed,
                self._slot_of,
                pinned,
                self.slots,
                self._recency,
                blob_bytes=self.blob_bytes,
                reserved=self._reserved(),
            )

    def touch(self, experts: Collection[ExpertId]) -> None:
        """Count these experts as used now."""
        with self._lock:
            self._clock += 1
            self._recency.update(dict.fromkeys(experts, self._clock))

    def set_row(self, row: int, kept: Kept, *, semantics: Semantics = "selection") -> None:
        """Write a mask row; experts that are not resident stay masked until they are published.

        Raises InvalidInput for a row outside the table, a wrong shape, or a layer that keeps nothing.
        """
        values = self._checked_row(row, kept)
        with self._lock:
            self._kept[row] = values
            self.sliced[row] = semantics == "slice"
            usable = values & self._resident_table()
            self.mask[:, row] = torch.from_numpy(np.where(usable, np.float32(0), np.float32(-np.inf))).to(self.device)

    def clear_row(self, row: int) -> None:
        """Forget a row: nothing can be routed under it any more."""
        with self._lock:
            self._kept[row] = False
            self.sliced[row] = False
            self.mask[:, row] = -torch.inf

    def row_experts(self, row: int) -> frozenset[ExpertId]:
        """The experts a row keeps, resident or not."""
        with self._lock:
            return frozenset(ExpertId(layer, expert) for layer, expert in np.argwhere(self._kept[row]).tolist())

    def row_ready(self, row: int) -> bool:
        """Whether the row keeps something and all of it is resident."""
        with self._lock:
            return bool(self._kept[row].any() and not (self._kept[row] & ~self._resident_table()).any())

    def retire(self, plan: SwapPlan, *, in_use: AbstractSet[ExpertId] = frozenset()) -> None:
        """Step one of a swap: take the victims out of the tables and reserve their slots for ``plan``.

        Raises Conflict, changing nothing, when the tables have moved on since the plan was made, another swap has one
        of its slots or experts, or a victim is ``in_use``.
        """
        with self._lock:
            self._check_current(plan, in_use)
            gone = sorted(plan.victims)
            if gone:
                layers, experts = self._columns(gone)
                self._write(self.lut, (layers, experts), np.asarray(self.slots, dtype=np.int64)[layers])
                self._write(self.mask, (layers, slice(None), experts), np.float32(-np.inf))
            for expert in gone:
                self._owner[expert.layer][self._slot_of.pop(expert)] = EMPTY
            event = None
            if self.device.type == "cuda":
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(torch.cuda.current_stream(self.device))
            self._tickets[id(plan)] = Ticket(plan, event)

    def ticket(self, plan: SwapPlan) -> Ticket:
        """The plan's swap. Raises Conflict when it was not retired, or is over."""
        with self._lock:
            if id(plan) not in self._tickets:
                raise Conflict("this swap was not started, or is over; plan it again", reason="SWAP_NOT_STARTED")
            return self._tickets[id(plan)]

    def abandon(self, plan: SwapPlan) -> None:
        """Give up a swap: its slots are empty and free again. Does nothing when it is over already."""
        with self._lock:
            self._tickets.pop(id(plan), None)

    def publish(
        self, plan: SwapPlan, rows: Mapping[int, Kept] | None = None, *, semantics: Semantics = "selection"
    ) -> int:
        """Step three: enter the copied experts and the mask rows into the tables. Returns the new generation.

        Raises Conflict, changing nothing, when the copy is not complete or a row keeps an expert that is not resident.
        """
        with self._lock:
            if not self.ticket(plan).copied:
                raise Conflict("this swap's copy is not complete; it cannot be published", reason="SWAP_NOT_COPIED")
            checked = {row: self._checked_row(row, kept) for row, kept in (rows or {}).items()}
            self._check_rows_resident(plan, checked)
            arrived = [load.expert for load in plan.loads]
            for load in plan.loads:
                self._owner[load.layer][load.slot] = load.expert.expert
                self._slot_of[load.expert] = load.slot
            if arrived:
                layers, experts = self._columns(arrived)
                slots = np.array([load.slot for load in plan.loads], dtype=np.int64)
                self._write(self.lut, (layers, experts), slots)
                kept = self._kept[:, layers, experts].T
                values = np.where(kept, np.float32(0), np.float32(-np.inf))
                self._write(self.mask, (layers, slice(None), experts), values)
            for row, values_of_row in checked.items():
                self.set_row(row, values_of_row, semantics=semantics)
                self.touch(self.row_experts(row))
            self.touch(arrived)
            self._tickets.pop(id(plan))
            self.generation += 1
            return self.generation

    def note_digest(self, expert: ExpertId, digest: str) -> None:
        """Remember the checksum of a blob that was converted on arrival (its stored digest no longer applies)."""
        with self._lock:
            self._held_digests[expert] = digest

    def digest(self, expert: ExpertId) -> str:
        """blake3 that the expert's slot must have."""
        with self._lock:
            return self._held_digests[expert] if self.layout.converts else self.manifest.digest(expert)

    def check_integrity(self) -> None:
        """Raise CorruptData when tables contradict each other or a slot's bytes are not its expert's.

        Reads every resident blob: for tests, for a watchdog, and after a doubt. Call it between two steps.
        """
        with self._lock:
            self._check_tables()
            for expert, slot in self._slot_of.items():
                if digest_of(self.arenas[expert.layer].slot(slot)) != self.digest(expert):
                    raise CorruptData(f"slot {slot} does not hold {expert}: its digest differs", reason="SLOT_DIGEST")
        self.host.check_integrity()

    def _check_tables(self) -> None:
        expected = self._absent().numpy()
        for expert, slot in self._slot_of.items():
            expected[expert.layer, expert.expert] = slot
            if self._owner[expert.layer][slot] != expert.expert:
                raise CorruptData(f"slot {slot} is owned by another expert than {expert}", reason="TABLES_DIFFER")
        if sum(int((row != EMPTY).sum()) for row in self._owner) != len(self._slot_of):
            raise CorruptData("the slot table names more experts than are resident", reason="TABLES_DIFFER")
        if not np.array_equal(self.lut.cpu().numpy(), expected):
            raise CorruptData("the look-up table differs from the slot table", reason="TABLES_DIFFER")
        allowed = np.moveaxis(self._kept & self._resident_table(), 0, 1)
        if not np.array_equal(self.mask.cpu().numpy() == 0, allowed):
            raise CorruptData("the mask table does not match the rows and the resident experts", reason="TABLES_DIFFER")
        for layer, slot in self._reserved():
            if self._owner[layer][slot] != EMPTY:
                raise CorruptData(
                    f"layer {layer} slot {slot} is published while a swap writes it", reason="TABLES_DIFFER"
                )

    def _absent(self) -> torch.Tensor:
        """i64[L, E + 1]: the look-up table of empty slots."""
        return torch.tensor(self.slots, dtype=torch.int64)[:, None].repeat(1, self.num_experts + 1)

    def _resident_table(self) -> npt.NDArray[np.bool_]:
        table = np.zeros((self.num_layers, self.num_experts), dtype=np.bool_)
        for expert in self._slot_of:
            table[expert] = True
        return table

    def _reserved(self) -> frozenset[tuple[int, int]]:
        return frozenset((load.layer, load.slot) for ticket in self._tickets.values() for load in ticket.plan.loads)

    def _arriving(self) -> frozenset[ExpertId]:
        return frozenset(load.expert for ticket in self._tickets.values() for load in ticket.plan.loads)

    def _columns(self, experts: Collection[ExpertId]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        pairs = np.array(list(experts), dtype=np.int64)
        return pairs[:, 0], pairs[:, 1]

    def _write(self, table: torch.Tensor, index: tuple[Any, ...], values: npt.NDArray[Any] | np.generic) -> None:
        """Write table entries in place: by numpy in main memory (torch would wake its threads), by torch elsewhere."""
        if self.device.type == "cpu":
            table.numpy()[index] = values
        else:
            where = tuple(i if isinstance(i, slice) else torch.from_numpy(i).to(self.device) for i in index)
            table[where] = torch.as_tensor(values, device=self.device)

    def _checked_row(self, row: int, kept: Kept) -> npt.NDArray[np.bool_]:
        if not 0 <= row < self.max_rows:
            raise InvalidInput(f"mask row {row} does not exist; the table has {self.max_rows}", reason="ROW_UNKNOWN")
        shape = (self.num_layers, self.num_experts)
        if isinstance(kept, Mapping):
            values = np.zeros(shape, dtype=np.bool_)
            for layer, experts in kept.items():
                values[layer, list(experts)] = True
        else:
            values = np.asarray(kept.cpu() if isinstance(kept, torch.Tensor) else kept, dtype=np.bool_)
        if values.shape != shape:
            raise InvalidInput(f"a mask row must be bool{list(shape)}, not {list(values.shape)}", reason="ROW_SHAPE")
        if not values.any(axis=1).all():
            layer = int(np.argmin(values.any(axis=1)))
            raise InvalidInput(f"the mask row keeps no expert in layer {layer}", reason="ROW_EMPTY")
        return values

    def _check_current(self, plan: SwapPlan, in_use: AbstractSet[ExpertId]) -> None:
        reserved = self._reserved()
        arriving = self._arriving()
        if id(plan) in self._tickets:
            raise Conflict("this swap is under way already", reason="SWAP_STARTED")
        for load in plan.loads:
            occupant = int(self._owner[load.layer][load.slot])
            expected = EMPTY if load.evicts is None else load.evicts.expert
            if (load.layer, load.slot) in reserved or load.expert in arriving:
                raise Conflict(f"another swap has slot {load.slot} of layer {load.layer}", reason="SLOT_RESERVED")
            if occupant != expected or load.expert in self._slot_of:
                raise Conflict("the slots changed since this swap was planned; plan it again", reason="PLAN_STALE")
            if load.evicts in in_use:
                raise Conflict(f"{load.evicts} is in use by a running sequence", reason="EXPERT_IN_USE")

    def _check_rows_resident(self, plan: SwapPlan, rows: Mapping[int, npt.NDArray[np.bool_]]) -> None:
        there = self._resident_table()
        for load in plan.loads:
            there[load.expert] = True
        for row, values in rows.items():
            if (values & ~there).any():
                layer, expert = (int(i) for i in np.argwhere(values & ~there)[0])
                raise Conflict(
                    f"mask row {row} keeps {ExpertId(layer, expert)}, which is not resident", reason="EXPERT_ABSENT"
                )
