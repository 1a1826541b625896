"""Measured answers as one document of figures with intervals: what tables, pictures and readers take. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern import GENERALIST_TASK, Metric
from premoe_runtime.offline.evaluation.exam import Answers
from premoe_runtime.offline.evaluation.plan import SERVED, Cell, Way
from premoe_runtime.offline.evaluation.statistics import LEVEL, RESAMPLES, Ratio
from premoe_runtime.offline.evaluation.sweep import Results
from premoe_runtime.offline.evaluation.tables import (
    COUNTED,
    Document,
    Found,
    by_seed,
    judged,
    kl,
    picked,
    retained,
    rounded,
)

FORMAT = "premoe-evaluation/2"
Cells = Callable[[str], Found]
"""Of a task."""


def figures(runs: Sequence[Results]) -> Document:
    """Everything that ``runs`` say, one of each model. Raises InvalidInput where they do not compare."""
    check_alike(runs)
    made = _Figures(runs)
    return {
        "format": FORMAT,
        "interval": {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "over": "training seeds x calibration seeds x test prompts",
        },
        "model": made.model(),
        "seeds": made.first.seeds,
        "full": {task: made.whole(task) for task in made.first.tasks},
        "counted": made.counted,
        "kept": made.kept(),
        "contest": [made.contest(budget) for budget in made.first.scope.budgets],
        "recognition": {task: made.recognition(task) for task in made.first.tasks},
        "matrix": made.matrix(made.first.scope.matrix) if made.first.scope.matrix else None,
    }


def check_alike(runs: Sequence[Results]) -> None:
    """Raise InvalidInput unless ``runs``, models of one shape, were asked the same prompts."""
    first = runs[0]
    for one in runs[1:]:
        asked = {task: (len(full.right), len(one.full[task].right)) for task, full in first.full.items()}
        uneven = [f"{task} ({a} and {b} prompts)" for task, (a, b) in asked.items() if a != b]
        if uneven:
            raise InvalidInput(
                f"the models were not asked the same: {', '.join(uneven)}; leave out prompts that do not fit all",
                reason="MODELS_UNLIKE",
            )


@dataclass(frozen=True, slots=True)
class _Figures:
    runs: Sequence[Results]

    @property
    def first(self) -> Results:
        """What all have alike: scope, tasks, seeds, shape."""
        return self.runs[0]

    @property
    def counted(self) -> list[str]:
        whole = {task: [100 * one.full[task].right.mean() for one in self.runs] for task in self.first.tasks}
        return [task for task, shares in whole.items() if min(shares) >= COUNTED]

    def full(self, task: str) -> Found:
        return [[one.full[task]] for one in self.runs]

    def model(self) -> Document:
        manifest, scope = self.first.manifest, self.first.scope
        return {
            "models": [{"model_id": one.manifest.model_id, "weights_id": one.manifest.weights_id} for one in self.runs],
            "family": manifest.family,
            "layers": manifest.num_layers,
            "experts": manifest.num_experts,
            "top_k": manifest.top_k,
            "spare_slots": scope.spare,
            "probe_experts": scope.probe,
        }

    def whole(self, task: str) -> Document:
        """What the full models give, all together and each: whoever never learnt a task counts in none of its means."""
        each = [round(100 * float(one.full[task].right.mean()), 2) for one in self.runs]
        return {**self.judged(task, self.full(task)), "models": each}

    def judged(self, task: str, found: Found) -> Document:
        """One task under some experts, of every model and seed."""
        return judged(found, self.full(task), counted=task in self.counted)

    def kept(self) -> list[Document]:
        """Every way to keep experts, task by task and in the mean."""
        ways: list[tuple[Way, Metric, Allocation]] = list(
            dict.fromkeys((cell.way, cell.score, cell.allocation) for cell in self.first.cells if cell.way != "without")
        )
        return [
            self._kept(way, score, allocation, budget)
            for budget in self.first.scope.budgets
            for way, score, allocation in ways
        ]

    def _kept(self, way: Way, score: Metric, allocation: Allocation, budget: Budget) -> Document:
        def cell(task: str, seed: int = 0) -> Cell:
            return Cell(task, way, score, allocation, budget, seed, task if way == "served" else "")

        held = {
            task: [one.held.get(cell(task, seed)) for one in self.runs for seed in range(one.seeds)]
            for task in self.first.tasks
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
            "retained": rounded(mean) if mean else None,
            "seeds": by_seed(mean) if mean else [],
            "kl": rounded([kl(cells(task)) for task in self.first.tasks], digits=4),
            "tasks": {task: self.judged(task, cells(task)) for task in self.first.tasks},
        }

    def contest(self, budget: Budget) -> Document:
        """The retrieved specialist beside static sets of the same bytes, and its lead over each.

        ``leads``: over the best of them all, and over the best of those that others' scores rank.
        """
        statics = {
            f"one set for all, {score}, {allocation}": self._static(score, allocation, budget)
            for score, allocation in self.first.scope.statics
        }
        entrants: dict[str, Cells] = {"retrieved specialist": lambda task: self._retrieved(task, budget), **statics}
        others = {name: cells for name, cells in statics.items() if f" {SERVED}," not in name}
        return {
            **self._size(budget),
            "static_experts": self.first.scope.equal_bytes(budget, self.first.manifest).kept,
            "entrants": [
                {
                    "name": name,
                    **self._judged(cells),
                    "behind": self._points(budget, cells) if name in statics else None,
                }
                for name, cells in entrants.items()
            ],
            "leads": [self._lead(budget, among) for among in (statics, others) if among] if self.counted else [],
        }

    def _lead(self, budget: Budget, among: Mapping[str, Cells]) -> Document:
        """Points over the best of static sets, which the test prompts themselves choose."""
        found = {name: self._retained(cells) for name, cells in among.items()}
        best = max(found, key=lambda name: sum(one.value for one in found[name]))
        return {"over": best, "points": self._points(budget, among[best])}

    def _points(self, budget: Budget, cells: Cells) -> list[float] | None:
        """That the retrieved specialist keeps more than ``cells``; None where no task counts."""
        ours = self._retained(lambda task: self._retrieved(task, budget))
        return rounded(ours, self._retained(cells)) if ours else None

    def _static(self, score: Metric, allocation: Allocation, budget: Budget) -> Cells:
        return lambda task: self._cells(Cell(task, "static", score, allocation, budget, 0))

    def recognition(self, task: str) -> Document:
        """Per cent of a task's test prompts that got its own experts, the generalist's, another task's."""
        owners = [owner for one in self.runs for seed in range(one.seeds) for owner in one.decisions[seed, task]]
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
            "kl": self._grid("served", budget, far=True),
        }

    def _grid(self, way: Way, budget: Budget, *, far: bool = False) -> list[list[list[float] | None]]:
        def entry(owner: str, task: str) -> list[float] | None:
            cells = self._cells(Cell(task, way, SERVED, "shared", budget, 0, owner))
            if not cells:
                return None
            if far:
                return rounded([kl(cells)], digits=4)
            return rounded([retained(cells, self.full(task))])

        return [[entry(owner, task) for task in self.counted] for owner in self.counted]

    def _size(self, budget: Budget) -> Document:
        return {"budget": str(budget), "percent": round(100 * budget.kept / self.first.manifest.num_experts, 2)}

    def _cells(self, cell: Cell) -> Found:
        """The cell of every model under every seed; empty where any is missing."""
        cells = [replace(cell, seed=seed) for seed in range(self.first.seeds)]
        whole = all(each in one.cells for one in self.runs for each in cells)
        return [[one.cells[each] for each in cells] for one in self.runs] if whole else []

    def _retrieved(self, task: str, budget: Budget) -> Found:
        """Every prompt as the experts answered it that it was given."""
        return [[_retrieved(one, task, budget, seed) for seed in range(one.seeds)] for one in self.runs]

    def _retained(self, cells: Cells) -> list[Ratio]:
        return [retained(cells(task), self.full(task)) for task in self.counted]


def _retrieved(results: Results, task: str, budget: Budget, seed: int) -> Answers:
    owners = results.decisions[seed, task]
    by_owner = {
        owner: results.cells[Cell(task, "served", SERVED, "shared", budget, seed, owner)] for owner in set(owners)
    }
    return picked([by_owner[owner] for owner in owners])
