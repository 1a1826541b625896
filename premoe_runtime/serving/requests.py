"""Requests and patterns as the residency manager sees them."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import numpy as np

from premoe_runtime.engines.base import SamplingParams, TokenEvent
from premoe_runtime.engines.base import Sequence as EngineSequence
from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.errors import Conflict, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.serving.swapping import SwapReport
from premoe_runtime.serving.turns import KeptTable, experts_of, pattern_key

FULL: Literal["full"] = "full"
"""Instead of a pattern: every expert of every layer."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptPattern:
    """A pattern cut to its budget: ``kept`` bool[L, E], L MoE layers."""

    id: str
    kept: KeptTable
    semantics: Semantics = "selection"

    @classmethod
    def full(cls, num_layers: int, num_experts: int) -> KeptPattern:
        return cls(FULL, np.ones((num_layers, num_experts), dtype=np.bool_))

    def check(self, *, num_layers: int, num_experts: int, slots: Sequence[int]) -> None:
        """Raise InvalidInput (shape, empty layer, too wide) or Conflict (full, but not every expert has a slot)."""
        if self.kept.shape != (num_layers, num_experts):
            raise InvalidInput(
                f"pattern {self.id} is {self.kept.shape[0]} × {self.kept.shape[1]}, but the model has {num_layers} MoE "
                f"layers of {num_experts} experts; use a pattern made for this model",
                reason="PATTERN_SHAPE",
            )
        counts = self.kept.sum(axis=1)
        room = np.asarray(slots)
        if self.id == FULL and int(room.min()) < num_experts:
            raise Conflict(
                f"the full model needs {num_experts} slots a layer, but this worker has {slots_text(slots)}; "
                "start it with slots for all experts, or use a pattern",
                reason="FULL_NEEDS_ALL_SLOTS",
            )
        if (counts > room).any():
            layer = int((counts - room).argmax())
            raise InvalidInput(
                f"pattern {self.id} keeps {int(counts[layer])} experts in layer {layer}, but this worker has "
                f"{int(room[layer])} slots there; use a smaller budget, a set made for this split, or more slots",
                reason="SLOTS_TOO_FEW",
            )
        if not counts.all():
            raise InvalidInput(
                f"pattern {self.id} keeps no expert in layer {int(counts.argmin())}", reason="PATTERN_EMPTY"
            )


@dataclass(frozen=True, slots=True)
class ManagedRequest:
    """One request with its pattern decided. ``active``: experts per token, at most the model's top-k."""

    request_id: str
    pattern: KeptPattern | Literal["full"]
    active: int
    token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)


class State(Enum):
    """Where a pattern stands."""

    IDLE = "idle"
    """No unfinished request; its row and experts may still be there."""
    WAITING = "waiting"
    """Requests wait, or are paused."""
    LOADING = "loading"
    """Its swap is under way."""
    RUNNING = "running"
    """Published; its experts are pinned."""


class Entry:
    """One request on its way. Fields are guarded by the manager's lock, but for ``announce``."""

    def __init__(
        self,
        request: ManagedRequest,
        group: Group,
        on_started: Callable[[SwapReport], None],
        on_event: Callable[[TokenEvent], None],
    ) -> None:
        self.request = request
        self.group = group
        self.on_event = on_event
        self.sequence: EngineSequence | None = None
        self.report: SwapReport | None = None
        self.error: Exception | None = None
        self.done = False
        # The swap made for this request runs in its context, so that spans opened by the source become its children.
        self.context = contextvars.copy_context()
        self._on_started = on_started
        self._announcing = threading.Lock()
        self._announced = False

    @property
    def pattern_id(self) -> str:
        return FULL if isinstance(self.request.pattern, str) else self.request.pattern.id

    def announce(self) -> None:
        """Report the swap once, before the first event, from whichever thread comes first."""
        with self._announcing:
            if not self._announced and self.report is not None:
                self._announced = True
                self._on_started(self.report)


class Group:
    """All unfinished requests under one pattern. Guarded by the manager's lock."""

    def __init__(self, pattern: KeptPattern) -> None:
        self.key = pattern_key(pattern.kept, pattern.semantics)
        self.pattern = pattern
        self.experts: frozenset[ExpertId] = experts_of(pattern.kept)
        self.state = State.IDLE
        self.since = 0
        self.row: int | None = None
        self.row_written = False
        self.host_pinned = False
        self.entries: dict[str, Entry] = {}
        self.loads: list[Future[SwapReport]] = []

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it. Safe to read without the lock."""
        return bool(self.loads) or any(entry.error is None for entry in list(self.entries.values()))

    def names(self) -> frozenset[str]:
        """Ids under which the pattern was asked for."""
        return frozenset({self.pattern.id} | {entry.pattern_id for entry in self.entries.values()})

    def submitted_ids(self) -> frozenset[str]:
        return frozenset(key for key, entry in self.entries.items() if entry.sequence is not None)
