"""A pattern is cut to the worker's budget once, not for every request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from premoe_worker import patterns
from premoe_worker.domain import PatternChoice
from premoe_worker.limits import Limits
from premoe_worker.model import ServedModel
from premoe_worker.ports import Retrieval
from premoe_worker.service import Worker

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.ranking import Ranking

LAYERS, EXPERTS = 2, 6
BUDGET = Budget(1, 3)
LIMITS = Limits(BUDGET, Budget(1, 4), (4,) * LAYERS, "generalist", "uniform")


class Rankings:
    def __init__(self) -> None:
        experts = np.tile(np.arange(EXPERTS), (LAYERS, 1))
        scores = np.tile(np.arange(EXPERTS, 0, -1.0), (LAYERS, 1))
        self.known = {name: Ranking(name, name, "w", "selection", name == "b", experts, scores) for name in "ab"}

    async def ranking(self, pattern_id: str) -> Ranking:
        return self.known[pattern_id]

    async def layer_slots(self, weights_id: str, kept: int, spare: int) -> tuple[int, ...]:
        return ()


def bare_worker() -> Worker:
    """A worker that can say what a request would run under, and nothing else."""
    exists = np.ones((LAYERS, EXPERTS), dtype=np.bool_)
    manifest = SimpleNamespace(weights_id="w", num_layers=LAYERS, num_experts=EXPERTS, top_k=1, exists=exists)
    model = cast(ServedModel, SimpleNamespace(manifest=manifest))
    return Worker(model, cast(Retrieval, Rankings()), LIMITS, name="m")


async def test_a_pattern_is_cut_once_to_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[str] = []
    kept = Ranking.kept

    def counting(self: Ranking, *args: Any) -> Any:
        cuts.append(self.pattern_id)
        return kept(self, *args)

    monkeypatch.setattr(Ranking, "kept", counting)
    worker = bare_worker()
    first, again, other = await worker.pattern("a"), await worker.pattern("a"), await worker.pattern("b")
    assert first is again
    assert (first.id, other.id) == ("a", "b")
    assert cuts == ["a", "b"]
    assert [int(each.kept.sum()) for each in (first, other)] == [3 * LAYERS, 4 * LAYERS]
    worker.close()


async def test_what_a_pattern_is_checked_by_and_the_full_one_are_worked_out_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks: list[str] = []
    check = patterns.check_ranking

    def counting(manifest: Manifest, ranking: Ranking) -> None:
        checks.append(ranking.pattern_id)
        check(manifest, ranking)

    monkeypatch.setattr(patterns, "check_ranking", counting)
    worker = bare_worker()
    await worker.pattern("a")
    await worker.pattern("a")
    await worker.pattern("b")
    assert checks == ["a", "b"]
    full = PatternChoice("full")
    assert (await worker._patterns.resolve(full))[1] is (await worker._patterns.resolve(full))[1]
    worker.close()
