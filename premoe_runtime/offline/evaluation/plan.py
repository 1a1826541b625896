"""What is measured, as a value: which tasks' prompts are answered by which experts. Nothing here runs a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from premoe_runtime.formats.arrays import Mask, existing
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS, Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import GENERALIST_TASK, Metric, Pattern
from premoe_runtime.offline.evaluation.rules import Patterns
from premoe_runtime.offline.profile.scores import find

Way = Literal["own", "served", "static", "without"]
"""own      the task's specialist, whose budget spreads as the allocation says
served   the ``owner``'s specialist, or the generalist, within the slots of one worker for all tasks
static   one set for all tasks, in the bytes that the worker takes with its spare slots and probe
without  every expert but those that the ``owner``'s specialist keeps"""

SCORES: tuple[Metric, ...] = ("impact", "reap", "easy-ep", "peu", "counts", "random")
"""Compared unless others are asked for."""
SERVED: Metric = "impact"
"""What specialists of the contest and the matrix are ranked by, shared over layers as a worker serves them."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One task's test prompts under one set of experts."""

    task: str
    way: Way
    score: Metric
    allocation: Allocation
    budget: Budget
    seed: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """What an evaluation spans. ``matrix``: the budget of the cross-task matrices.

    spare, probe   slots a layer on average that a worker has beside the kept experts, and experts' worth of weights
                   in all that a prober of its own holds: a static set of equal bytes keeps so many more
    """

    budgets: tuple[Budget, ...]
    scores: tuple[Metric, ...] = SCORES
    matrix: Budget | None = None
    spare: int = DEFAULT_SPARE_SLOTS
    probe: int = 0

    def check(self, *, top_k: int, num_experts: int) -> None:
        """Raise InvalidInput for no budget or score, or a budget that a model of this top-k and size cannot run."""
        if not self.budgets or not self.scores:
            raise InvalidInput("name at least one budget and one score", reason="EVALUATION_EMPTY")
        for budget in (*self.budgets, *([self.matrix] if self.matrix else [])):
            budget.check(top_k=top_k, num_experts=num_experts)

    @property
    def ranked(self) -> tuple[Metric, ...]:
        """Every score that profiles must give."""
        return tuple(dict.fromkeys((*self.scores, SERVED)))

    @property
    def owns(self) -> tuple[tuple[Metric, Allocation], ...]:
        """Rules of the specialists: every score, shared over layers and uniform (what is random is so anyway)."""
        rules = product(self.scores, get_args(Allocation))
        return tuple((score, allocation) for score, allocation in rules if (score, allocation) != ("random", "shared"))

    @property
    def statics(self) -> tuple[tuple[Metric, Allocation], ...]:
        """Rules of the static sets: each score as published, and shared where layers compare."""
        uniform: list[tuple[Metric, Allocation]] = [(score, "uniform") for score in self.scores]
        return (*[(score, "shared") for score in self.scores if find(score).comparable], *uniform)

    def equal_bytes(self, budget: Budget, manifest: Manifest) -> Budget:
        """What a static set keeps a layer in the bytes of a worker at ``budget``: at most every expert."""
        probe = -(-self.probe // manifest.num_layers)
        return Budget(budget.active, min(budget.kept + self.spare + probe, manifest.num_experts))


Decisions = Mapping[tuple[int, str], Sequence[str]]
"""By seed and task: whose experts each test prompt gets, a task's or the generalist's."""


def plan(scope: Scope, tasks: Sequence[str], seeds: int, decisions: Decisions) -> list[Cell]:
    """Every cell, each once, by task."""
    cells = [cell for task in tasks for cell in _of_task(scope, task, tasks, seeds, decisions)]
    return list(dict.fromkeys(cells))


def _of_task(scope: Scope, task: str, tasks: Sequence[str], seeds: int, decisions: Decisions) -> Iterator[Cell]:
    every = list(product(scope.budgets, range(seeds)))
    for (budget, seed), rule in product(every, scope.owns):
        yield Cell(task, "own", *rule, budget, seed)
    for (budget, seed), rule in product(every, scope.statics):
        yield Cell(task, "static", *rule, budget, seed)
    for budget, seed in every:
        for owner in sorted({task, *decisions[seed, task]}):
            yield Cell(task, "served", SERVED, "shared", budget, seed, owner)
    if scope.matrix is not None:
        for seed, owner in product(range(seeds), tasks):
            yield Cell(task, "served", SERVED, "shared", scope.matrix, seed, owner)
            yield Cell(task, "without", SERVED, "shared", scope.matrix, seed, owner)


Rules = Mapping[tuple[int, Metric, Allocation], Patterns]
"""By seed, score and allocation."""


def mask_of(cell: Cell, rules: Rules, scope: Scope, manifest: Manifest) -> Mask | None:
    """bool[L, E] that the cell keeps; None where what is left does not give every token its experts."""
    rule = rules[cell.seed, cell.score, cell.allocation]
    if cell.way == "own":
        return rule.specialists[cell.task].kept(cell.budget)
    if cell.way == "static":
        return _pool(rule).kept(scope.equal_bytes(cell.budget, manifest))
    pattern = _pool(rule) if cell.owner == GENERALIST_TASK else rule.specialists[cell.owner]
    if cell.way == "served":
        return pattern.kept(cell.budget, rule.slots(cell.budget))
    left = existing(manifest.layer_experts) & ~pattern.kept(cell.budget)
    return left if left.sum(axis=1).min() >= cell.budget.active else None


def _pool(rule: Patterns) -> Pattern:
    assert rule.generalist is not None, "rules made from profiles have a generalist"
    return rule.generalist
