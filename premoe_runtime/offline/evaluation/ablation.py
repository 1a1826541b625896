"""What each task loses without another task's own experts, beside what it loses without as many taken at random.

The evaluation that Monet (arXiv 2412.04139, section 5) proposes: accuracy by domain under the mask of each domain.
Nothing here runs a model: cells are planned, and told by their answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from premoe_runtime.formats.arrays import Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.domains import Domains
from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.evaluation.exam import Answers, perplexity
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.evaluation.statistics import Estimate, Ratio, estimate

CONTROLS = 3
"""Random draws beside every mask."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A task's prompts without the own experts of ``denied`` (empty: nobody's); ``draw``: as many at random instead."""

    task: str
    budget: Budget | None
    denied: str = ""
    draw: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ablation:
    """What is to be measured of one pattern set.

    own       bool[L, E] by denied task
    budgets   None stands for the full model; at another each task runs on its specialist
    controls  random masks beside each, of as many experts in every layer
    """

    tasks: tuple[str, ...]
    specialists: Mapping[str, Pattern]
    own: Mapping[str, Mask]
    exists: Mask
    top_k: int
    budgets: tuple[Budget | None, ...]
    controls: int = CONTROLS
    seed: int = 0

    @classmethod
    def of(
        cls,
        tasks: Sequence[str],
        specialists: Mapping[str, Pattern],
        domains: Domains,
        *,
        exists: Mask,
        top_k: int,
        budgets: Sequence[Budget | None],
        controls: int = CONTROLS,
        seed: int = 0,
    ) -> Ablation:
        """Deny each task of the set in its turn; one that has no expert of its own is denied nowhere.

        Raises NotFound for a task without a specialist, InvalidInput where no task has an expert of its own.
        """
        if unknown := sorted(set(tasks) - specialists.keys()):
            known = ", ".join(sorted(specialists))
            raise NotFound(
                f"no pattern for task {unknown[0]!r}; the patterns of the set are for {known}", reason="TASK_UNKNOWN"
            )
        own = {}
        for task in sorted(specialists):
            try:
                own[task] = domains.own([task])
            except InvalidInput as error:
                last = error
        if not own:
            raise InvalidInput(f"nothing to deny: {last}", reason="DENY_INVALID")
        return cls(tuple(tasks), specialists, own, exists, top_k, tuple(budgets), controls, seed)

    def cells(self) -> list[Cell]:
        """Every cell, best task by task: what it loses is compared with its first."""
        draws = (None, *range(self.controls))
        return [
            cell
            for task, budget in product(self.tasks, self.budgets)
            for cell in (
                Cell(task, budget),
                *(Cell(task, budget, denied, draw) for denied, draw in product(self.own, draws)),
            )
            if self.asked(cell) is not None
        ]

    def asked(self, cell: Cell) -> Asked | None:
        """What an ``Examiner`` is asked; None where some layer would keep fewer experts than a token needs."""
        active = cell.budget.active if cell.budget else self.top_k
        name = f"{cell.task} without {cell.denied or 'nothing'}"
        if not cell.denied:
            return Asked(cell.task, self.kept(cell.task, cell.budget) if cell.budget else None, active, name)
        gone = self.own[cell.denied]
        if cell.draw is not None:
            kept = self.kept(cell.task, cell.budget)
            gone = _as_many(kept, kept & gone, [self.seed, cell.draw, sorted(self.own).index(cell.denied)])
        if (self.exists & ~gone).sum(axis=1).min() < active:
            return None
        return Asked(cell.task, self.kept(cell.task, cell.budget, gone), active, name)

    def kept(self, task: str, budget: Budget | None, gone: Mask | None = None) -> Mask:
        """bool[L, E]: what a task runs on without the experts that are ``gone``; at a budget the next best come in."""
        if budget is None:
            return self.exists if gone is None else self.exists & ~gone
        specialist = self.specialists[task]
        return (specialist if gone is None else specialist.without(gone)).kept(budget)


def _as_many(kept: Mask, gone: Mask, seed: Sequence[int]) -> Mask:
    """bool[L, E]: of the ``kept``, as many in each layer as are ``gone``, drawn at random."""
    order = np.where(kept, np.random.default_rng(seed).random(kept.shape), np.inf).argsort(axis=1).argsort(axis=1)
    return np.asarray(order < gone.sum(axis=1)[:, None])


@dataclass(frozen=True, slots=True)
class Loss:
    """A cell against the same task with nobody denied. Intervals over its prompts (and draws).

    lost        points of exact match; None for a task that is never answered exactly
    perplexity  of the given answers
    kl          nats a predicted token, full model to this one
    experts     how many of those that the task runs on are masked out
    """

    task: str
    denied: str
    budget: Budget | None
    control: bool
    experts: int
    lost: Estimate | None
    perplexity: float
    kl: Estimate

    def document(self) -> dict[str, Any]:
        """As JSON; estimates are [value, low, high]."""
        return {
            "task": self.task,
            "denied": self.denied,
            "budget": _named(self.budget),
            "control": self.control,
            "experts": self.experts,
            "exact_match_lost": None if self.lost is None else _listed(self.lost),
            "perplexity": self.perplexity,
            "kl": _listed(self.kl),
        }


@dataclass(frozen=True, slots=True)
class Mean:
    """All cells of a budget on the mean: of each task its own experts denied, and each other's.

    Points of exact match over tasks that are answered exactly at all, None where there is none; ``kl`` over all tasks.
    Intervals over prompts, denied tasks and draws.
    """

    budget: Budget | None
    control: bool
    own: Estimate | None
    others: Estimate | None
    own_kl: Estimate | None
    others_kl: Estimate | None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        found = {"own": self.own, "others": self.others, "own_kl": self.own_kl, "others_kl": self.others_kl}
        return {
            "budget": _named(self.budget),
            "control": self.control,
            **{name: None if each is None else _listed(each) for name, each in found.items()},
        }


@dataclass(frozen=True, slots=True)
class Base:
    """A task with nobody denied: exact match in per cent, and the perplexity of the given answers."""

    task: str
    budget: Budget | None
    accuracy: float
    perplexity: float

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "task": self.task,
            "budget": _named(self.budget),
            "accuracy": self.accuracy,
            "perplexity": self.perplexity,
        }


def bases(ablation: Ablation, answers: Mapping[Cell, Answers]) -> list[Base]:
    """Of every task at every budget."""
    cells = [Cell(task, budget) for task, budget in product(ablation.tasks, ablation.budgets)]
    return [
        Base(cell.task, cell.budget, 100 * float(answers[cell].right.mean()), answers[cell].perplexity)
        for cell in cells
    ]


def losses(ablation: Ablation, answers: Mapping[Cell, Answers]) -> list[Loss]:
    """Every mask's and, after it, its controls' together; those that left too few experts are not there."""
    found = []
    for task, budget in product(ablation.tasks, ablation.budgets):
        base = answers[Cell(task, budget)]
        for denied, mask in ablation.own.items():
            experts = int((ablation.kept(task, budget) & mask).sum())
            for control in (False, True):
                if each := _asked(ablation, answers, task, budget, [denied], control=control):
                    found.append(_loss(task, denied, budget, experts, base, each, control=control))
    return found


def means(ablation: Ablation, answers: Mapping[Cell, Answers]) -> list[Mean]:
    """Of every budget, and of its controls."""
    found = []
    for budget, control in product(ablation.budgets, (False, True) if ablation.controls else (False,)):
        bases, mine, others = list[Answers](), list[list[Answers]](), list[list[Answers]]()
        for task in ablation.tasks:
            rest = [denied for denied in ablation.own if denied != task]
            bases.append(answers[Cell(task, budget)])
            mine.append(_asked(ablation, answers, task, budget, [task], control=control))
            others.append(_asked(ablation, answers, task, budget, rest, control=control))
        found.append(Mean(budget, control, *_points(bases, mine, others), *map(_kl, (mine, others))))
    return found


def _points(bases: Sequence[Answers], *found: Sequence[Sequence[Answers]]) -> tuple[Estimate | None, ...]:
    return tuple(
        _lost([(base, each) for base, each in zip(bases, one, strict=True) if each and base.right.any()])
        for one in found
    )


def _asked(
    ablation: Ablation,
    answers: Mapping[Cell, Answers],
    task: str,
    budget: Budget | None,
    denied: Sequence[str],
    *,
    control: bool,
) -> list[Answers]:
    """What was measured of a task without these, each in its turn."""
    draws = range(ablation.controls) if control else (None,)
    cells = [Cell(task, budget, one, draw) for one, draw in product(denied, draws)]
    return [answers[cell] for cell in cells if cell in answers]


def _lost(found: Sequence[tuple[Answers, Sequence[Answers]]]) -> Estimate | None:
    """Points of exact match, the mean over tasks: a base, and what is compared with it."""
    if not found:
        return None
    rights = [np.stack([100.0 * one.right for one in each])[None] for _, each in found]
    wholes = [np.broadcast_to(100.0 * base.right, one.shape) for (base, _), one in zip(found, rights, strict=True)]
    return estimate(*([Ratio(one, np.ones(one.shape)) for one in tables] for tables in (wholes, rights)))


def _kl(found: Sequence[Sequence[Answers]]) -> Estimate | None:
    tables = [np.stack([one.kl for one in each])[None] for each in found if each]
    return estimate([Ratio(one, np.ones(one.shape)) for one in tables]) if tables else None


def _loss(
    task: str,
    denied: str,
    budget: Budget | None,
    experts: int,
    base: Answers,
    each: Sequence[Answers],
    *,
    control: bool,
) -> Loss:
    lost = _lost([(base, each)]) if base.right.any() else None
    kl = _kl([each])
    assert kl is not None, "there is something to compare"
    nll = float(np.mean([one.nll.sum() for one in each]))
    return Loss(task, denied, budget, control, experts, lost, perplexity(nll, int(base.tokens.sum())), kl)


def _listed(found: Estimate) -> list[float]:
    return [round(found.value, 4), round(found.low, 4), round(found.high, 4)]


def _named(budget: Budget | None) -> str:
    return "full" if budget is None else str(budget)
