"""The tables by which a step finds experts and may use them, whatever memory its slots lie in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.ledger import Placement
from premoe_runtime.residency.plan import EMPTY
from premoe_runtime.residency.slot_shape import SlotShape

Kept = npt.NDArray[np.bool_] | torch.Tensor | Mapping[int, Collection[int]]
"""Experts a mask row keeps: bool[L, E], or the kept experts of every MoE layer."""


class Breadth(NamedTuple):
    """What some mask rows leave to choose from: ``least`` experts in any layer, or the ``whole`` model. ``sliced``:
    whether they are; None: some are.
    """

    least: int
    whole: bool = False
    sliced: bool | None = None


NARROW = Breadth(0)
"""Nothing is known."""


class SlotTables(ABC):
    """The look-up table and the mask table over slots of every MoE layer. They decide nothing: the ledger does.

    ``lut``: i64[L, E + 1], expert -> slot; a layer's ``slots`` means absent,
    and entry E is the "no expert" sentinel. ``mask``: f32[L, P, E], 0 where a row keeps an expert *and* it is
    published, else -inf. ``sliced``: bool[P]. Their addresses never change. They are written by ``retire``,
    ``publish`` and ``set_row`` only, between two steps, on the engine's thread; bytes of slots by one
    copy at a time, of slots that the tables do not name. Where those bytes are is said by who holds them.
    """

    def __init__(self, shape: SlotShape, device: str | torch.device = "cpu") -> None:
        self.shape = shape
        self.device = torch.device(device)
        self.slots, max_rows = shape.slots, shape.max_rows
        self.num_layers, self.num_experts = shape.num_layers, shape.num_experts
        self.lut = self._absent().to(self.device)
        self.mask = torch.full((self.num_layers, max_rows, self.num_experts), -torch.inf, device=self.device)
        self.sliced = torch.zeros(max_rows, dtype=torch.bool, device=self.device)
        self._table = [[EMPTY] * count for count in self.slots]
        self._resident = np.zeros((self.num_layers, self.num_experts), dtype=np.bool_)
        self._kept = np.zeros((max_rows, self.num_layers, self.num_experts), dtype=np.bool_)
        self._digests: dict[ExpertId, str] = {}
        self._breadths: dict[frozenset[int], Breadth] = {}

    @abstractmethod
    def slot_digest(self, layer: int, index: int) -> str:
        """blake3 of the bytes that lie in a slot now."""

    def holds(self, layer: int, index: int) -> bool:
        """Whether the bytes of a slot lie here, and not on another rank."""
        return True

    def breadth(self, rows: frozenset[int]) -> Breadth:
        """Of rows that are in use together."""
        if rows not in self._breadths:
            chosen = sorted(rows)
            usable = (self._kept[chosen] & self._resident).sum(axis=-1)
            sliced = {bool(self.sliced[row]) for row in chosen}
            self._breadths[rows] = Breadth(
                int(usable.min()),
                bool((usable == self.shape.manifest.exists.sum(axis=-1)).all()),
                sliced.pop() if len(sliced) == 1 else None,
            )
        return self._breadths[rows]

    def slot_table(self) -> list[list[int]]:
        """Per layer and slot the published expert, or -1."""
        return [list(row) for row in self._table]

    def resident(self) -> frozenset[ExpertId]:
        """Published experts."""
        return frozenset(ExpertId(layer, expert) for layer, expert in np.argwhere(self._resident).tolist())

    def retire(self, experts: Collection[ExpertId]) -> torch.cuda.Event | None:
        """Step one of a swap: from the next step on nobody reaches these experts.

        Returns, on CUDA, the event of the last step that could; a copy into their slots waits for it. Raises Conflict
        for an expert that is not published.
        """
        if gone := [expert for expert in experts if not self._resident[expert]]:
            raise Conflict(f"{gone[0]} is not published; it cannot be retired", reason="EXPERT_ABSENT")
        if experts:
            self._breadths.clear()
            layers, columns = _columns(experts)
            self._write(self.lut, (layers, columns), np.asarray(self.slots, dtype=np.int64)[layers])
            self._write(self.mask, (layers, slice(None), columns), np.float32(-np.inf))
            self._resident[layers, columns] = False
            for expert in experts:
                row = self._table[expert.layer]
                row[row.index(expert.expert)] = EMPTY
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def publish(
        self,
        placements: Collection[Placement],
        rows: Mapping[int, Kept] | None = None,
        *,
        semantics: Semantics = "selection",
    ) -> None:
        """Step three: from the next step on these experts are found in these slots, and these rows hold.

        Raises Conflict, changing nothing, when a slot holds another expert or a row keeps one that is not resident.
        """
        checked = {row: self._checked_row(row, kept) for row, kept in (rows or {}).items()}
        for expert, slot in placements:
            if self._table[expert.layer][slot] != EMPTY:
                raise Conflict(f"slot {slot} of layer {expert.layer} is not free for {expert}", reason="SLOT_TAKEN")
        self._check_rows_resident([expert for expert, _ in placements], checked)
        if placements:
            self._breadths.clear()
            layers, columns = _columns(expert for expert, _ in placements)
            self._resident[layers, columns] = True
            for expert, slot in placements:
                self._table[expert.layer][slot] = expert.expert
            self._write(self.lut, (layers, columns), np.array([slot for _, slot in placements], dtype=np.int64))
            kept_there = self._kept[:, layers, columns].T
            self._write(self.mask, (layers, slice(None), columns), _mask_of(kept_there))
        for row, values in checked.items():
            self.set_row(row, values, semantics=semantics)

    def set_row(self, row: int, kept: Kept, *, semantics: Semantics = "selection") -> None:
        """Write a mask row; experts that are not resident stay masked until they are published.

        Raises InvalidInput for a row outside the table, a wrong shape, or a layer that keeps nothing.
        """
        values = self._checked_row(row, kept)
        self._breadths.clear()
        self._kept[row] = values
        self.sliced[row] = semantics == "slice"
        self.mask[:, row] = torch.from_numpy(_mask_of(values & self._resident)).to(self.device)

    def note_digest(self, expert: ExpertId, digest: str) -> None:
        """Remember the checksum that a slot was filled with (a blob converted on arrival has one of its own)."""
        self._digests[expert] = digest

    def digest(self, expert: ExpertId) -> str:
        """blake3 of the bytes that the expert's slot was filled with."""
        return self._digests[expert]

    def check_integrity(self) -> None:
        """Raise CorruptData when tables contradict each other or a slot's bytes are not its expert's.

        Reads every resident blob: for tests, for a watchdog, and after a doubt. Call it between two steps.
        """
        expected = self._absent().numpy()
        seen = np.zeros_like(self._resident)
        for layer, row in enumerate(self._table):
            for slot, expert in enumerate(row):
                if expert != EMPTY:
                    expected[layer, expert] = slot
                    seen[layer, expert] = True
        if not np.array_equal(seen, self._resident) or not np.array_equal(self.lut.cpu().numpy(), expected):
            raise CorruptData("the look-up table differs from the slot table", reason="TABLES_DIFFER")
        if not np.array_equal(self.mask.cpu().numpy() == 0, np.moveaxis(self._kept & self._resident, 0, 1)):
            raise CorruptData("the mask table does not match the rows and the resident experts", reason="TABLES_DIFFER")
        for resident in self.resident():
            slot = int(expected[resident])
            if not self.holds(resident.layer, slot):
                continue
            if self.slot_digest(resident.layer, slot) != self._digests[resident]:
                raise CorruptData(f"slot {slot} does not hold {resident}: its digest differs", reason="SLOT_DIGEST")

    def _absent(self) -> torch.Tensor:
        """i64[L, E + 1]: the look-up table of empty slots."""
        return torch.tensor(self.slots, dtype=torch.int64)[:, None].repeat(1, self.num_experts + 1)

    def _write(self, table: torch.Tensor, index: tuple[Any, ...], values: npt.NDArray[Any] | np.generic) -> None:
        """Write table entries in place: by numpy in main memory (torch would wake its threads), by torch elsewhere."""
        if self.device.type == "cpu":
            table.numpy()[index] = values
        else:
            where = tuple(i if isinstance(i, slice) else torch.from_numpy(i).to(self.device) for i in index)
            table[where] = torch.as_tensor(values, device=self.device)

    def _checked_row(self, row: int, kept: Kept) -> npt.NDArray[np.bool_]:
        rows = self.shape.max_rows
        if not 0 <= row < rows:
            raise InvalidInput(f"mask row {row} does not exist; the table has {rows}", reason="ROW_UNKNOWN")
        shape = (self.num_layers, self.num_experts)
        if isinstance(kept, Mapping):
            values = np.zeros(shape, dtype=np.bool_)
            for layer, experts in kept.items():
                values[layer, list(experts)] = True
        else:
            values = np.asarray(kept.cpu() if isinstance(kept, torch.Tensor) else kept, dtype=np.bool_)
        if values.shape != shape:
            raise InvalidInput(f"a mask row must be bool{list(shape)}, not {list(values.shape)}", reason="ROW_SHAPE")
        missing = values & ~self.shape.manifest.exists
        if missing.any():
            layer, expert = (int(i) for i in np.argwhere(missing)[0])
            raise InvalidInput(
                f"the mask row keeps {ExpertId(layer, expert)}, which the model does not have", reason="EXPERT_UNKNOWN"
            )
        if not values.any(axis=1).all():
            layer = int(np.argmin(values.any(axis=1)))
            raise InvalidInput(f"the mask row keeps no expert in layer {layer}", reason="ROW_EMPTY")
        return values

    def _check_rows_resident(self, arriving: Iterable[ExpertId], rows: Mapping[int, npt.NDArray[np.bool_]]) -> None:
        there = self._resident.copy()
        for newcomer in arriving:
            there[newcomer] = True
        for row, values in rows.items():
            if (values & ~there).any():
                layer, expert = (int(i) for i in np.argwhere(values & ~there)[0])
                raise Conflict(
                    f"mask row {row} keeps {ExpertId(layer, expert)}, which is not resident", reason="EXPERT_ABSENT"
                )


def _columns(experts: Iterable[ExpertId]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    pairs = np.array(list(experts), dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


def _mask_of(usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    return np.where(usable, np.float32(0), np.float32(-np.inf))
