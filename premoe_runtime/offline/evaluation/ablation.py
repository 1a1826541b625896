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
            "budget": "full" if self.budget is None else str(self.budget),
            "control": self.control,
            "experts": self.experts,
            "exact_match_lost": None if self.lost is None else _listed(self.lost),
            "perplexity": self.perplexity,
            "kl": _listed(self.kl),
        }


def losses(ablation: Ablation, answers: Mapping[Cell, Answers]) -> list[Loss]:
    """Every mask's and, after it, its controls' together; those that left too few experts are not there."""
    found = []
    for task, budget in product(ablation.tasks, ablation.budgets):
        base = answers[Cell(task, budget)]
        for denied, mask in ablation.own.items():
            experts = int((ablation.kept(task, budget) & mask).sum())
            own = [one for one in [answers.get(Cell(task, budget, denied))] if one]
            drawn = [answers.get(Cell(task, budget, denied, draw)) for draw in range(ablation.controls)]
            for control, each in ((False, own), (True, [one for one in drawn if one])):
                if each:
                    found.append(_loss(task, denied, budget, experts, base, each, control=control))
    return found


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
    rights = np.stack([100.0 * one.right for one in each])[None]
    whole = np.broadcast_to(100.0 * base.right, rights.shape)
    kls = np.stack([one.kl for one in each])[None]
    ones = np.ones(rights.shape)
    nll = float(np.mean([one.nll.sum() for one in each]))
    return Loss(
        task,
        denied,
        budget,
        control,
        experts,
        estimate([Ratio(whole, ones)], [Ratio(rights, ones)]) if base.right.any() else None,
        perplexity(nll, int(base.tokens.sum())),
        estimate([Ratio(kls, ones)]),
    )


def _listed(found: Estimate) -> list[float]:
    return [round(found.value, 4), round(found.low, 4), round(found.high, 4)]
