"""What is asked of the serving loop: requests, and patterns cut to their budget."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from premoe_runtime.engines.base import TokenEvent
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.arrays import I64
from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.errors import Conflict, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.serving.admission import Place
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.turns import KeptTable, experts_of, pattern_key

logger = logging.getLogger(__name__)
T = TypeVar("T")

FULL = "full"
"""Id of the pattern that keeps every expert of every layer."""


@dataclass(frozen=True, eq=False)
class KeptPattern:
    """A pattern cut to its budget: ``kept`` bool[L, E], L MoE layers. What is worked out from it is worked out once.

    ``one_request``: as requests ask for it, not as it is stored; all of these leave half the mask rows to others.
    """

    id: str
    kept: KeptTable
    semantics: Semantics = "selection"
    one_request: bool = False

    @cached_property
    def key(self) -> str:
        """Identity of its mask row, whatever the pattern is called."""
        return pattern_key(self.kept, self.semantics)

    @cached_property
    def experts(self) -> frozenset[ExpertId]:
        """The kept experts."""
        return experts_of(self.kept)

    @cached_property
    def counts(self) -> I64:
        """i64[L]: experts kept in each layer."""
        counts: I64 = self.kept.sum(axis=1)
        return counts

    @classmethod
    def full(cls, exists: KeptTable) -> KeptPattern:
        """``exists``: bool[L, E], the model's experts."""
        return cls(FULL, exists)

    def check(self, exists: KeptTable, slots: Sequence[int]) -> None:
        """Raise InvalidInput (shape, empty layer, too wide) or Conflict (full, but not every expert has a slot)."""
        experts = exists.sum(axis=1)
        all_experts = slots_text(experts.tolist())
        if self.kept.shape != exists.shape or (self.kept & ~exists).any():
            raise InvalidInput(
                f"pattern {self.id} is {self.kept.shape[0]} × {self.kept.shape[1]}, but the model has {len(experts)} "
                f"MoE layers of {all_experts} experts; use a pattern made for this model",
                reason="PATTERN_SHAPE",
            )
        counts = self.counts
        room = np.asarray(slots)
        if self.id == FULL and (room < experts).any():
            raise Conflict(
                f"the full model needs {all_experts} slots a layer, but this worker has {slots_text(slots)}; "
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
class Request:
    """One request with its pattern decided. ``active``: experts per token, at most the model's top-k.

    ``salt``: of the tenant; keys and values are never shared across salts. ``grammar``: see ``engines.base.Submit``.
    ``priority``: 0 for most; larger ones step back behind smaller ones, wherever requests wait.
    """

    request_id: str
    pattern: KeptPattern
    active: int
    token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    salt: bytes = b""
    grammar: str = ""
    priority: int = 0


@dataclass(eq=False, slots=True)
class OpenRequest:
    """A request that has not ended, on its way through the loop, which alone changes it.

    ``on_started`` is called once with what its swap moved, before any event; ``report`` is that, once it is known.
    ``error``: why it will end, if its group failed. What is fetched for it runs in ``context``, for its trace alone.
    """

    asked: Request
    on_started: Callable[[SwapReport], None]
    on_event: Callable[[TokenEvent], None]
    context: contextvars.Context
    place: Place
    submitted: bool = False
    compiling: bool = False
    """Whether the engine has it and still makes its grammar."""
    started: bool = False
    ended: bool = False
    error: Exception | None = None

    def tell(self, call: Callable[[T], None], news: T) -> bool:
        """Whether its owner took the news: a receiver that raises ends nobody but itself."""
        try:
            call(news)
        except Exception:
            logger.exception("the receiver of request %s failed; cancelling it", self.id)
            return False
        return True

    def end(self, event: TokenEvent) -> None:
        """Its last event: nothing else of it is left."""
        self.ended = True
        self.place.leave()
        self.tell(self.on_event, event)

    @property
    def id(self) -> str:
        return self.asked.request_id

    @property
    def pattern(self) -> KeptPattern:
        return self.asked.pattern
