"""Answers and recognition in other wordings, and abstention on strangers: kind by kind."""

from collections.abc import Callable, Iterator
from typing import Any

from premoe_local.tasks import EXACT, STORED
from premoe_local.tasks.wordings import KINDS, PLAIN, STRANGERS, applies, talks
from torch import Tensor

from fixture_training.accuracy import Share, matches
from fixture_training.recognition import Decider, signatures_of
from fixture_training.stock import Encoded, Stock


def measure_worded(
    stock: Stock, decide: Decider, change: Callable[[Tensor], Tensor], count: int
) -> Iterator[dict[str, Any]]:
    """One row a kind: role, exact match of the exact tasks, and what recognition makes of all stored ones, in per cent.

    ``count`` talks a task with payloads of the test split, which training never had; recognition knows the tasks' own
    wordings alone and reads the last turn.
    """
    for kind in (PLAIN, *KINDS):
        tasks = [task for task in STORED if applies(task, kind)]
        pools = {task: [stock.encode_talk(talk) for talk in talks(task, kind, count, split="test")] for task in tasks}
        right = [hit for task in EXACT for hit in matches(stock, pools[task])]
        yield {
            "kind": kind,
            "role": KINDS[kind].role if kind != PLAIN else "",
            "exact": Share.of(sum(right), len(right)).percent,
            **_recognition(stock, decide, change, pools),
        }


def measure_strangers(
    stock: Stock, decide: Decider, change: Callable[[Tensor], Tensor], count: int
) -> Iterator[dict[str, Any]]:
    """One row a family: role, the task it is near, and abstention in per cent."""
    for name, family in STRANGERS.items():
        encoded = [stock.encode_talk(talk) for talk in talks(name, PLAIN, count)]
        _, abstained = decide(change(signatures_of(stock, encoded)))
        yield {"family": name, "role": family.role, "near": family.near, "abstained": _percent(abstained)}


def _recognition(
    stock: Stock, decide: Decider, change: Callable[[Tensor], Tensor], pools: dict[str, list[Encoded]]
) -> dict[str, float]:
    known, right, away = 0, 0, 0
    for task, encoded in pools.items():
        choice, abstained = decide(change(signatures_of(stock, encoded)))
        known += len(encoded)
        right += int(((choice == STORED.index(task)) & ~abstained).sum())
        away += int(abstained.sum())
    return {
        "recognised": round(100 * right / known, 1),
        "abstained": round(100 * away / known, 1),
        "wrong": round(100 * (known - right - away) / known, 1),
    }


def _percent(hits: Tensor) -> float:
    return round(100 * float(hits.float().mean()), 1)
