"""A pattern is cut to the worker's budget once, not for every request."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from premoe_worker.domain import Ranking
from premoe_worker.limits import Limits
from premoe_worker.model import ServedModel
from premoe_worker.ports import Retrieval
from premoe_worker.service import Worker

from premoe_runtime.formats.budget import Budget

LAYERS, EXPERTS = 2, 6
BUDGET = Budget(1, 3)


class Rankings:
    def __init__(self) -> None:
        experts = np.tile(np.arange(EXPERTS), (LAYERS, 1))
        scores = np.tile(np.arange(EXPERTS, 0, -1.0), (LAYERS, 1))
        self.known = {name: Ranking(name, name, "w", "selection", name == "b", experts, scores) for name in "ab"}

    async def ranking(self, pattern_id: str) -> Ranking:
        return self.known[pattern_id]

    async def layer_slots(self, weights_id: str, kept: int, spare: int) -> tuple[int, ...]:
        return ()


async def test_a_pattern_is_cut_once_for_each_budget_and_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[str] = []
    kept = Ranking.kept

    def counting(self: Ranking, *args: Any) -> Any:
        cuts.append(self.pattern_id)
        return kept(self, *args)

    monkeypatch.setattr(Ranking, "kept", counting)
    limits = Limits(BUDGET, BUDGET, (4,) * LAYERS, "generalist", "uniform")
    exists = np.ones((LAYERS, EXPERTS), dtype=np.bool_)
    manifest = SimpleNamespace(weights_id="w", num_layers=LAYERS, num_experts=EXPERTS, exists=exists)
    worker = Worker(
        cast(ServedModel, SimpleNamespace(manifest=manifest)), cast(Retrieval, Rankings()), limits, name="m"
    )
    first, again, other = await worker.pattern("a"), await worker.pattern("a"), await worker.pattern("b")
    assert first is again
    assert (first.id, other.id) == ("a", "b")
    assert cuts == ["a", "b"]
    worker.limits = replace(limits, budget=Budget(1, 4))
    assert int((await worker.pattern("a")).kept.sum()) == 4 * LAYERS
    assert cuts == ["a", "b", "a"]
    worker.close()
