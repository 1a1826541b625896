from __future__ import annotations

import pytest
from premoe_gateway.domain import WorkerState
from premoe_gateway.routing import AFFINITY_SLACK, choose_worker


def state(address: str, running: int = 0, waiting: int = 0) -> WorkerState:
    return WorkerState(
        address,
        "m",
        "w",
        running,
        waiting,
        slots=6,
        layer_slots=(7, 5),
        allocation="shared",
        experts=16,
        context_length=64,
        budget="2/4",
    )


CASES: dict[str, tuple[list[WorkerState], dict[str, list[str]], str | None]] = {
    "nobody there": ([], {}, None),
    "lower address among equals": ([state("b"), state("a")], {}, "a"),
    "less busy first": ([state("a", running=2), state("b", waiting=1)], {}, "b"),
    "who ran the pattern": ([state("a"), state("b", running=2)], {"b": ["x", "p"]}, "b"),
    "unless clearly busier": ([state("a"), state("b", running=AFFINITY_SLACK + 1)], {"b": ["p"]}, "a"),
    "who ran it last": ([state("a"), state("b")], {"a": ["x", "p"], "b": ["p", "x"]}, "b"),
    "a fresh one for a new pattern": ([state("a"), state("b")], {"a": ["x"]}, "b"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_choose_worker(case: tuple[list[WorkerState], dict[str, list[str]], str | None]) -> None:
    states, recent, expected = case
    chosen = choose_worker(states, "p", recent)
    assert (chosen.address if chosen else None) == expected
