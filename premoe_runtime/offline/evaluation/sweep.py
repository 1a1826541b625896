"""Carrying an evaluation out: profiles of every task and seed, then one cell after the other, each kept as it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.formats.arrays import F32, Mask
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import GENERALIST_TASK, Metric
from premoe_runtime.formats.recognition import recognise
from premoe_runtime.offline.calibration import Example
from premoe_runtime.offline.evaluation.data import TaskData, check_tasks
from premoe_runtime.offline.evaluation.exam import Answers
from premoe_runtime.offline.evaluation.journal import Journal
from premoe_runtime.offline.evaluation.known import Known
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.evaluation.plan import SCORES, SERVED, Cell, Decisions, Rules, Scope, mask_of, plan
from premoe_runtime.offline.evaluation.rules import Patterns
from premoe_runtime.offline.patterns.build import BuildOptions, build_set
from premoe_runtime.offline.patterns.measurements import Measurement, ensure_profile
from premoe_runtime.offline.profile.measure import measure_profile
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.offline.profile.scores import find, refusal, refuse_family
from premoe_runtime.offline.profile.unfinished import Unfinished
from premoe_runtime.storage import Store

Stage = Callable[[str, float], None]
"""Told what is being done and the share of all the work that is done, 0 to 1."""
_PROFILE = 4.0
"""About how many cells a profile of a task and a seed takes as long as."""


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """All that was measured: the full model's answers by task, those of every cell, and whom prompts were taken for.

    ``held``: of specialists ranked by a score that compares between layers, the share of the task's total score that
    the kept experts hold.
    """

    scope: Scope
    manifest: Manifest
    tasks: tuple[str, ...]
    seeds: int
    full: Mapping[str, Answers]
    cells: Mapping[Cell, Answers]
    decisions: Decisions
    held: Mapping[Cell, float]


def sweep(
    model: SlotModel,
    data: Mapping[str, TaskData],
    scope: Scope,
    *,
    store: Store,
    journal: Journal,
    spool: Path | None = None,
    stage: Stage = lambda what, share: None,
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """Measure all that ``scope`` spans; ``store`` keeps the profiles, ``journal`` the answers.

    ``model`` and ``spool`` are what an ``Examiner`` takes.

    A run that was stopped goes on behind its last batch of a profile, or its last cell. ``say`` is told of what is not
    used. Raises InvalidInput (scores, budgets, data that do not do), CorruptData (answers that are not finite).
    """
    seeds = check_tasks(data)
    scope.check(top_k=model.manifest.top_k, num_experts=model.manifest.num_experts)
    refuse_family(scope.ranked, model.manifest.family)
    measure = Profiler(model, store, spool, profiled(scope, model.manifest.family), stage, say)
    total = len(data) * (seeds + 1) * _PROFILE
    by_seed = [[measure(task, one.calibration[seed], total) for task, one in data.items()] for seed in range(seeds)]
    asked = {task: measure(task, one.test, total, scores=("counts",)).signatures for task, one in data.items()}
    rules = _rules(by_seed, scope)
    decisions = decided(by_seed, asked)
    cells = plan(scope, tuple(data), seeds, decisions)
    masks = {cell: kept for cell in cells if (kept := mask_of(cell, rules, scope, model.manifest)) is not None}
    full, answers = _answers(model, data, masks, journal, spool, stage, say)
    return Results(scope, model.manifest, tuple(data), seeds, full, answers, decisions, _held(masks, rules))


def profiled(scope: Scope, family: str) -> tuple[Metric, ...]:
    """What profiles are measured for: the usual scores that the family gives, too, so that other choices share them."""
    usual = (score for score in SCORES if not refusal(find(score), FAMILIES[family]))
    return tuple(dict.fromkeys((*usual, *scope.ranked)))


@dataclass(slots=True)
class Profiler:
    """Profiles by what they are measured from, each measured once. ``model`` and ``spool`` are an ``Examiner``'s."""

    model: SlotModel
    store: Store
    spool: Path | None
    scores: tuple[Metric, ...]
    stage: Stage
    say: Callable[[str], None]
    done: int = 0

    def __call__(
        self, task: str, examples: Sequence[Example], total: float, *, scores: tuple[Metric, ...] = ()
    ) -> Profile:
        wanted = scores or self.scores
        variant = f"{self.model.model.dtype} scores {' '.join(sorted(wanted))}"
        one = Measurement.of(self.model.manifest.weights_id, task, "given", examples, variant)
        share = self.done * _PROFILE / total / 2
        self.stage(f"profiling {task}", share)
        unfinished = Unfinished(self.store, one.weights_id, task)

        def measure() -> Profile:
            return measure_profile(
                self.model,
                examples,
                task=task,
                where=task,
                scores=wanted,
                unfinished=unfinished,
                spool=self.spool,
                stage=lambda what: self.stage(f"profiling {task}, {what}", share),
                passed_over=self.say,
            )

        profile_id = ensure_profile(self.store, one, measure)
        unfinished.clear()
        self.done += 1
        return Profile.load(self.store.get, profile_id)


def _rules(by_seed: Sequence[Sequence[Profile]], scope: Scope) -> Rules:
    return {
        (seed, score, allocation): Patterns.by_rule(profiles, score, allocation, seed=seed, spare=scope.spare)
        for (seed, profiles), score, allocation in product(enumerate(by_seed), scope.ranked, get_args(Allocation))
    }


def decided(by_seed: Sequence[Sequence[Profile]], asked: Mapping[str, F32]) -> Decisions:
    """What a set of each seed's profiles takes the test prompts for, as the retrieval service would."""
    found = {}
    for seed, profiles in enumerate(by_seed):
        built = build_set(profiles, BuildOptions(metric=SERVED)).pattern_set
        for task, signatures in asked.items():
            each = [recognise(built, signature) for signature in signatures]
            found[seed, task] = tuple(one.task if one.recognised else GENERALIST_TASK for one in each)
    return found


def _answers(
    model: SlotModel,
    data: Mapping[str, TaskData],
    masks: Mapping[Cell, Mask],
    journal: Journal,
    spool: Path | None,
    stage: Stage,
    say: Callable[[str], None],
) -> tuple[dict[str, Answers], dict[Cell, Answers]]:
    known = Known(model, {task: one.test for task, one in data.items()}, journal, spool=spool, passed_over=say)
    full = {task: Asked(task, None, model.manifest.top_k, f"{task}, the full model") for task in data}
    of_cells = {
        cell: Asked(cell.task, kept, cell.budget.active, f"{cell.task} at {cell.budget}, {cell.way}, {cell.score}")
        for cell, kept in masks.items()
    }
    # Task by task, which is what is known best.
    asked = [one for task in data for one in (full[task], *(cell for cell in of_cells.values() if cell.task == task))]
    found = known.answers(asked, lambda what, share: stage(what, 0.5 + share / 2))
    answers = dict(zip(asked, found, strict=True))
    return {task: answers[one] for task, one in full.items()}, {cell: answers[one] for cell, one in of_cells.items()}


def _held(masks: Mapping[Cell, Mask], rules: Rules) -> dict[Cell, float]:
    found = {}
    for cell, kept in masks.items():
        own = cell.way == "own" or (cell.way == "served" and cell.owner == cell.task)
        if own and find(cell.score).comparable:
            scores = rules[cell.seed, cell.score, cell.allocation].specialists[cell.task].scores.astype(np.float64)
            total = scores.sum(where=scores > -np.inf)
            found[cell] = float(scores.sum(where=kept) / total) if total else 1.0
    return found
