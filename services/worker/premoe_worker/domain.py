"""The worker's nouns. No gRPC, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from premoe_runtime.engines.base import FinishReason, SamplingParams
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import DecisionKind, OnUnknown, Semantics

if TYPE_CHECKING:
    # It brings torch, and a wrong budget should be told before that is imported.
    from premoe_runtime.serving.swapping import SwapReport


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: str
    content: str


Prompt = str | tuple[int, ...] | tuple[Turn, ...]
"""Raw text, token ids, or a conversation."""


@dataclass(frozen=True, slots=True)
class PatternChoice:
    """What to run, and why."""

    decision: DecisionKind
    pattern_id: str = ""
    task: str = ""
    score: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """A pattern as retrieval hands it out: ``experts`` i64[L, E], most needed first."""

    pattern_id: str
    task: str
    weights_id: str
    semantics: Semantics
    generalist: bool
    experts: npt.NDArray[np.int64]

    def kept(self, budget: Budget) -> npt.NDArray[np.bool_]:
        """bool[L, E]: the ``budget.kept`` first experts of every layer."""
        mask = np.zeros(self.experts.shape, np.bool_)
        np.put_along_axis(mask, self.experts[:, : budget.kept], True, axis=1)
        return mask


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. ``choice`` None: the worker recognises the task itself; ``on_unknown`` None: its own policy."""

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    choice: PatternChoice | None = None
    active_experts: int | None = None
    on_unknown: OnUnknown | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """First event of an answer."""

    choice: PatternChoice
    prompt_tokens: int
    swap: SwapReport


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens and the text that is certain by now."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    retained_mass: float
    first_token_ms: float
    decode_ms: float


Event = Started | Delta | Finished
