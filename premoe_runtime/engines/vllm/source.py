"""Where a vLLM worker finds the model's source: handed to it in its own process, or at the plan's URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from premoe_runtime.engines.vllm.plan import SlotPlan
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.residency.source import ExpertSource

_handed: ContextVar[ExpertSource | None] = ContextVar("premoe_vllm_source", default=None)


@contextmanager
def handed(source: ExpertSource) -> Iterator[None]:
    """Engines that are built meanwhile, on this thread, take this source."""
    token = _handed.set(source)
    try:
        yield
    finally:
        _handed.reset(token)


def source_of(plan: SlotPlan) -> ExpertSource:
    """Raises what opening the pack raises."""
    return _handed.get() or open_pack(plan.pack)
