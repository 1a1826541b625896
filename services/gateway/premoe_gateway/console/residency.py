"""What is resident on every worker, and what its last swap moved, as a document. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from premoe_gateway.console import masks
from premoe_gateway.domain import WorkerState

Json = dict[str, object]

MOST_WORKERS = 64
"""Workers with a picture; more are only counted."""


def residency(known: Sequence[tuple[str, WorkerState | None]], poll_s: float) -> Json:
    """Of all workers by address; None stands for one that does not serve. ``poll_s``: seconds it holds for."""
    shown = known[:MOST_WORKERS]
    return {
        "poll_s": poll_s,
        "workers": [_worker(address, state) for address, state in shown],
        "left_out": len(known) - len(shown),
    }


def _worker(address: str, state: WorkerState | None) -> Json:
    if state is None:
        return {"address": address, "serving": False}
    return {
        "address": address,
        "serving": True,
        "model": state.model,
        "budget": state.budget,
        "running": state.running,
        "waiting": state.waiting,
        "experts": state.experts,
        "generation": state.generation,
        "device_bytes": state.device_bytes,
        "total_bytes": state.total_bytes,
        "resident": masks.layers(state.residents),
        "moved": _moved(state.before, state.residents) if state.before else None,
    }


def _moved(before: Sequence[frozenset[int]], now: Sequence[frozenset[int]]) -> Json:
    """What came and what went between two looks: one swap, or several that followed closely."""
    return {
        "in": masks.layers(new - old for old, new in zip(before, now, strict=False)),
        "out": masks.layers(old - new for old, new in zip(before, now, strict=False)),
    }
