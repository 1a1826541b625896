"""What a pattern set says about itself: how well it recognises tasks, and what its patterns keep."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from premoe_runtime.formats.choices import DecisionKind
from premoe_runtime.formats.documents import Name


class Frozen(BaseModel):
    """Part of a set's document."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Retention(Frozen):
    """What the generalist keeps at one budget, averaged over the set's tasks."""

    budget: str
    mass: float
    """Share of the full router's probability on kept experts, 0 to 1, from the profiles."""
    accuracy: float | None = None
    """Accuracy over the full model's, when ``premoe eval`` measured it."""


class Expected(Frozen):
    """How well the set tells tasks apart, measured on its calibration prompts when it was built; 0 to 1.

    ``recognised``: of prompts in wordings as if new, those that get their task; ``abstained``: of prompts of a task
    that is left out, those that get none. Means over the tasks.
    """

    recognised: float
    abstained: float


class Decided(Frozen):
    """One way in which a task's held-out prompts were decided, and what it is worth in answers: by ``premoe eval``."""

    task: Name
    budget: str
    kind: DecisionKind
    pattern: str = ""
    """Task of the pattern that runs; empty for the full model, and where requests are refused."""
    share: float = Field(ge=0, le=1)
    """Of the task's prompts, those that were decided so."""
    accuracy: float = Field(ge=0, le=1)
    """Right answers to all of the task's prompts when they run so."""
    lost: float = Field(ge=-1, le=1)
    """Right answers a request of the task that this costs: ``share`` times what its own specialist has more."""
