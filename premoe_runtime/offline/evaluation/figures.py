"""Measured answers as one document of figures with intervals: what tables, pictures and readers take. Pure.

Shares are in per cent and estimates are ``[value, low, high]``. *Retained* is a task's right answers under some experts
over those of the full model on the same prompts; a mean over tasks counts every task that the full model answers at
all (``COUNTED``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.pattern import GENERALIST_TASK, Metric
from premoe_runtime.offline.evaluation.exam import Answers
from premoe_runtime.offline.evaluation.plan import SERVED, Cell, Way
from premoe_runtime.offline.evaluation.statistics import LEVEL, RESAMPLES, Ratio, estimate
from premoe_runtime.offline.evaluation.sweep import Results

FORMAT = "premoe-evaluation/1"
COUNTED = 10.0
"""Per cent of right answers from which a task counts in means of retained accuracy."""
Document = dict[str, Any]
BySeed = Sequence[Answers]
Cells = Callable[[str], BySeed]
"""Of a task."""


def figures(results: Results) -> Document:
    """Everything that ``results`` say."""
    made = _Figures(results)
    return {
        "format": FORMAT,
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "over": "calibration seeds x test prompts"},
        "model": made.model(),
        "seeds": results.seeds,
        "full": {task: made.judged(task, [results.full[task]]) for task in results.tasks},
        "counted": made.counted,
        "kept": made.kept(),
        "contest": [made.contest(budget) for budget in results.scope.budgets],
        "recognition": {task: made.recognition(task) for task in results.tasks},
        "matrix": made.matrix(results.scope.matrix) if results.scope.matrix else None,
    }


@dataclass(frozen=True, slots=True)
class _Figures:
    results: Results

    @property
    def counted(self) -> list[str]:
        return [task for task, full in self.results.full.items() if 100 * full.right.mean() >= COUNTED]

    def model(self) -> Document:
        manifest, scope = self.results.manifest, self.results.scope
        return {
            "model_id": manifest.model_id,
            "weights_id": manifest.weights_id,
            "family": manifest.family,
            "layers": manifest.num_layers,
            "experts": manifest.num_experts,
            "top_k": manifest.top_k,
            "spare_slots": scope.spare,
            "probe_experts": scope.probe,
        }

    def judged(self, task: str, by_seed: BySeed) -> Document:
        """One task under some experts, of every seed."""
        full = self.results.full[task]
        right = _table(by_seed, lambda one: one.right)
        known = {} if task not in self.counted else {"retained": _estimate([Ratio(100 * right, _row(full.right))])}
        return {
            "prompts": len(full.right),
            "accuracy": _estimate([_alone(100 * right)]),
            **known,
            "perplexity": _estimate(
                [Ratio(_table(by_seed, lambda one: one.nll), _row(full.tokens))],
                of=lambda nll: np.exp(np.minimum(nll, 700)),
            ),
            "kl": _estimate([_alone(_table(by_seed, lambda one: one.kl))], digits=4),
        }

    def kept(self) -> list[Document]:
        """Every way to keep experts, task by task and in the mean."""
        ways: list[tuple[Way, Metric, Allocation]] = list(
            dict.fromkeys(
                (cell.way, cell.score, cell.allocation) for cell in self.results.cells if cell.way != "without"
            )
        )
        return [
            self._kept(way, score, allocation, budget)
            for budget in self.results.scope.budgets
            for way, score, allocation in ways
        ]

    def _kept(self, way: Way, score: Metric, allocation: Allocation, budget: Budget) -> Document:
        def cell(task: str, seed: int = 0) -> Cell:
            return Cell(task, way, score, allocation, budget, seed, task if way == "served" else "")

        held = {
            task: [self.results.held.get(cell(task, seed)) for seed in range(self.results.seeds)]
            for task in self.results.tasks
        }
        shares = {task: round(100 * fmean(each), 1) for task, each in held.items() if None not in each}  # type: ignore[arg-type]
        return {
            "way": way,
            "score": score,
            "allocation": allocation,
            **self._size(budget),
            **self._judged(lambda task: self._cells(cell(task))),
            "held": shares,
        }

    def _judged(self, cells: Cells) -> Document:
        mean = self._retained(cells)
        return {
            "retained": _estimate(mean) if mean else None,
            "seeds": [
                round(float(np.mean([one.top[seed].sum() / one.bottom.sum() for one in mean])), 2)
                for seed in range(self.results.seeds)
            ]
            if mean
            else [],
            "kl": _estimate([_alone(_table(cells(task), lambda one: one.kl)) for task in self.results.tasks], digits=4),
            "tasks": {task: self.judged(task, cells(task)) for task in self.results.tasks},
        }

    def contest(self, budget: Budget) -> Document:
        """The retrieved specialist beside static sets of the same bytes, and its leads over the best of them.

        ``leads``: over all of them, and over those that others' scores rank.
        """
        statics = {
            f"one set for all, {score}, {allocation}": self._static(score, allocation, budget)
            for score, allocation in self.results.scope.statics
        }
        entrants: dict[str, Cells] = {"retrieved specialist": lambda task: self._retrieved(task, budget), **statics}
        others = {name: cells for name, cells in statics.items() if f" {SERVED}," not in name}
        return {
            **self._size(budget),
            "static_experts": self.results.scope.equal_bytes(budget, self.results.manifest).kept,
            "entrants": [{"name": name, **self._judged(cells)} for name, cells in entrants.items()],
            "leads": [self._lead(budget, among) for among in (statics, others) if among] if self.counted else [],
        }

    def _lead(self, budget: Budget, among: Mapping[str, Cells]) -> Document:
        """Points over the best of static sets, which the test prompts themselves choose."""
        found = {name: self._retained(cells) for name, cells in among.items()}
        best = max(found, key=lambda name: sum(one.value for one in found[name]))
        ours = self._retained(lambda task: self._retrieved(task, budget))
        return {"over": best, "points": _estimate(ours, found[best])}

    def _static(self, score: Metric, allocation: Allocation, budget: Budget) -> Cells:
        return lambda task: self._cells(Cell(task, "static", score, allocation, budget, 0))

    def recognition(self, task: str) -> Document:
        """Per cent of a task's test prompts that got its own experts, the generalist's, another task's."""
        owners = [owner for seed in range(self.results.seeds) for owner in self.results.decisions[seed, task]]
        own, unknown = owners.count(task), owners.count(GENERALIST_TASK)
        shares = {"own": own, "generalist": unknown, "other": len(owners) - own - unknown}
        return {name: round(100 * count / len(owners), 2) for name, count in shares.items()}

    def matrix(self, budget: Budget) -> Document:
        """Rows: whose experts are kept, or dropped; columns: whose prompts are asked. Null: too few are left."""
        return {
            **self._size(budget),
            "tasks": self.counted,
            "retained": self._grid("served", budget),
            "without": self._grid("without", budget),
            "kl": self._grid("served", budget, kl=True),
        }

    def _grid(self, way: Way, budget: Budget, *, kl: bool = False) -> list[list[list[float] | None]]:
        def entry(owner: str, task: str) -> list[float] | None:
            cells = self._cells(Cell(task, way, SERVED, "shared", budget, 0, owner))
            if not cells:
                return None
            if kl:
                return _estimate([_alone(_table(cells, lambda one: one.kl))], digits=4)
            return _estimate([self._ratio(task, cells)])

        return [[entry(owner, task) for task in self.counted] for owner in self.counted]

    def _size(self, budget: Budget) -> Document:
        return {"budget": str(budget), "percent": round(100 * budget.kept / self.results.manifest.num_experts, 2)}

    def _cells(self, cell: Cell) -> BySeed:
        """The cell under every seed; empty where any is missing."""
        named = (cell.task, cell.way, cell.score, cell.allocation, cell.budget)
        cells = [Cell(*named, seed, cell.owner) for seed in range(self.results.seeds)]
        return [self.results.cells[one] for one in cells] if all(one in self.results.cells for one in cells) else []

    def _retrieved(self, task: str, budget: Budget) -> BySeed:
        """Every prompt as the experts answered it that it was given."""
        found = []
        for seed in range(self.results.seeds):
            owners = self.results.decisions[seed, task]
            by_owner = {
                owner: self.results.cells[Cell(task, "served", SERVED, "shared", budget, seed, owner)]
                for owner in set(owners)
            }
            found.append(_picked([by_owner[owner] for owner in owners]))
        return found

    def _retained(self, cells: Cells) -> list[Ratio]:
        return [self._ratio(task, cells(task)) for task in self.counted]

    def _ratio(self, task: str, by_seed: BySeed) -> Ratio:
        return Ratio(100 * _table(by_seed, lambda one: one.right), _row(self.results.full[task].right))


def _picked(answers: Sequence[Answers]) -> Answers:
    """Prompt n as the n-th answers have it."""
    places = range(len(answers))
    fields = ("right", "nll", "tokens", "kl", "mass")
    return Answers(*(np.array([getattr(answers[n], name)[n] for n in places]) for name in fields))


def _table(by_seed: BySeed, field: Callable[[Answers], Any]) -> F64:
    """f64[S, N]."""
    return np.stack([np.asarray(field(one), np.float64) for one in by_seed])


def _alone(table: F64) -> Ratio:
    """A mean over seeds and prompts."""
    return Ratio(table, np.ones_like(table))


def _row(values: Any) -> F64:
    """f64[1, N]: what knows no seeds."""
    return np.asarray(values, np.float64)[None]


def _estimate(
    ratios: Iterable[Ratio],
    minus: Sequence[Ratio] = (),
    *,
    of: Callable[[F64], F64] = lambda ratio: ratio,
    digits: int = 2,
) -> list[float]:
    found = estimate(list(ratios), minus, of=of)
    return [round(value, digits) for value in (found.value, found.low, found.high)]
