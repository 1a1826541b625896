"""What pruned models keep, by the product's own profiles, rankings and splits: rules, allocations, seeds, budgets.

Answers are kept as `premoe eval sweep` keeps them, so that a run that is stopped goes on where it was.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from premoe_local.demo.calibration import calibration
from premoe_local.demo.prepare import pack_fixture
from premoe_local.tasks import EXACT, OPEN, STORED, examples

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.pattern import Metric
from premoe_runtime.offline.calibration import Example
from premoe_runtime.offline.evaluation.journal import Journal
from premoe_runtime.offline.evaluation.known import Known
from premoe_runtime.offline.evaluation.rules import Patterns
from premoe_runtime.offline.evaluation.variants import Run
from premoe_runtime.offline.patterns.derive import overlap
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.packs.reader import open_pack

RULES: tuple[Metric, ...] = ("impact", "peu", "seer", "norm", "counts", "random")
ALLOCATIONS: tuple[Allocation, ...] = ("shared", "uniform")
POOLED: tuple[Metric, ...] = ("impact", "seer", "peu")
"""Rules by which generalists are made, of the first calibration seed."""
SHARES = (2, 4, 8)
"""The experts are divided by these."""
SEEDS = (0, 1)
CALIBRATION = 128
OPEN_PROMPTS = 96


@dataclass(frozen=True, slots=True)
class Sizes:
    """Test prompts a task for pruned models, and for a pair of tasks where one runs the other's experts."""

    pruned: int
    wrong: int


@dataclass(slots=True)
class Row:
    """One way to keep experts at one size; the means are over calibration seeds."""

    how: str
    metric: str
    allocation: str
    percent_kept: float
    retained: float
    """Mean over the exact tasks of the share of full accuracy kept, in per cent."""
    seeds: list[float]
    """The same, seed by seed."""
    exact: dict[str, float]
    """Exact match of each task, in per cent."""
    perplexity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a row is made of: the runs of every calibration seed."""

    how: str
    metric: str
    allocation: str
    budget: Budget
    seeds: list[list[Run]]

    def of_task(self, task: str) -> Iterator[Run]:
        return (run for runs in self.seeds for run in runs if run.task == task)


class Answers:
    """Right answers and perplexity of the model on test prompts, whole or pruned; each is measured once."""

    def __init__(self, model: SlotModel, sizes: Sizes, journal: Journal) -> None:
        limits = {task: min(sizes.pruned, OPEN_PROMPTS) if task in OPEN else sizes.pruned for task in STORED}
        own = {task: asked(task, limit) for task, limit in limits.items()}
        wrong = {task: own[task][: sizes.wrong] for task in EXACT}
        self._top_k = model.manifest.top_k
        self._known = {True: Known(model, wrong, journal), False: Known(model, own, journal)}

    def of(self, run: Run) -> tuple[float, float]:
        """Per cent of right answers, and perplexity of the given ones."""
        [answers] = self._known[run.variant == "wrong"].answers([run.asked(self._top_k)])
        return 100 * float(answers.right.mean()), answers.perplexity


def asked(task: str, count: int) -> list[Example]:
    """The first test prompts of a task, with answers."""
    return calibration(examples(task, "test", count))


@contextmanager
def loaded(folder: Path) -> Iterator[SlotModel]:
    """The checkpoint as the product runs it: packed, all experts in slots, arithmetic in 32 bits."""
    with TemporaryDirectory(prefix="premoe-card-") as store:
        pack_fixture(folder, f"file://{store}")
        yield load_full_model(open_pack(f"file://{store}"), dtype="float32")


def profiles(model: SlotModel, seed: int) -> list[Profile]:
    """One profile a stored task, from ``CALIBRATION`` documents of one calibration seed."""
    return [
        measure_profile(model, calibration(examples(task, "calibration", CALIBRATION, seed)), task=task)
        for task in STORED
    ]


def measure_retention(
    model: SlotModel, sizes: Sizes, memory: Path | None, advance: Callable[[str], None]
) -> dict[str, object]:
    """All figures of pruned models; ``memory`` keeps answers, ``advance`` is called ``steps()`` times."""
    by_seed = [profiles(model, seed) for seed in SEEDS]
    made = {
        (metric, allocation): [
            Patterns.by_rule(each, metric, allocation, seed=seed) for seed, each in zip(SEEDS, by_seed, strict=True)
        ]
        for metric, allocation in product(RULES, ALLOCATIONS)
    }
    budgets = [Budget(model.manifest.top_k, model.manifest.num_experts // share) for share in SHARES]
    planned = [
        Planned(how, metric, allocation, budget, [plan(budget) for plan in plans])
        for budget, (how, metric, allocation, plans) in product(budgets, _plans(made))
    ]
    with TemporaryDirectory(prefix="premoe-card-") as scratch:
        answers = Answers(model, sizes, Journal(memory or Path(scratch) / "cells.jsonl"))
        # Task by task, because the full model's answers are remembered of one at a time.
        full = {}
        for task in STORED:
            full[task] = answers.of(Run(task, "full", None, None))
            for row in planned:
                advance(f"{task}, {row.how}, {row.metric} {row.allocation}, {row.budget}")
                for run in row.of_task(task):
                    answers.of(run)
        rows = [_row(row, full, answers, model.manifest.num_experts) for row in planned]
    best = made["impact", "shared"][0]
    return {
        "full_on_pruned_prompts": {task: round(full[task][0], 2) for task in EXACT},
        "full_perplexity_on_pruned_prompts": {task: round(full[task][1], 2) for task in OPEN},
        "calibration_documents": CALIBRATION,
        "calibration_seeds": len(SEEDS),
        "pruned_prompts": sizes.pruned,
        "wrong_prompts": sizes.wrong,
        "retention": [asdict(row) for row in rows],
        "splits": {str(budget): _splits(best, budget) for budget in budgets},
        "overlap": {str(budget): _overlap(best, budget) for budget in budgets},
    }


def steps() -> int:
    """How often ``measure_retention`` reports."""
    return len(STORED) * len(SHARES) * len(list(_plans({rule: [] for rule in product(RULES, ALLOCATIONS)})))


Plan = Callable[[Budget], list[Run]]


def _plans(made: dict[tuple[Metric, Allocation], list[Patterns]]) -> Iterator[tuple[str, str, str, list[Plan]]]:
    """Every way to keep experts, what matters most first: its name, and the runs of each seed."""
    for (metric, allocation), seeds in made.items():
        if allocation == "shared" and metric != "random":
            yield "as served", metric, allocation, [_served(rule) for rule in seeds]
        yield "own split", metric, allocation, [_own(rule) for rule in seeds]
    for (metric, allocation), seeds in made.items():
        if metric in POOLED:
            yield "generalist", metric, allocation, [_pooled(rule) for rule in seeds[:1]]
    yield "wrong specialist", "impact", "shared", [_wrong(rule) for rule in made["impact", "shared"][:1]]


def _own(rule: Patterns) -> Plan:
    return lambda budget: [Run(task, "specialist", budget, rule.specialists[task]) for task in STORED]


def _served(rule: Patterns) -> Plan:
    return lambda budget: [Run(t, "served", budget, rule.specialists[t], rule.slots(budget)) for t in STORED]


def _pooled(rule: Patterns) -> Plan:
    return lambda budget: [Run(task, "generalist", budget, rule.generalist) for task in STORED]


def _wrong(rule: Patterns) -> Plan:
    return lambda budget: [
        Run(task, "wrong", budget, rule.specialists[other], rule.slots(budget))
        for task, other in product(EXACT, STORED)
        if other != task
    ]


def _row(row: Planned, full: dict[str, tuple[float, float]], answers: Answers, experts: int) -> Row:
    found: list[dict[str, list[tuple[float, float]]]] = []
    for runs in row.seeds:
        by_task: dict[str, list[tuple[float, float]]] = {}
        for run in runs:
            by_task.setdefault(run.task, []).append(answers.of(run))
        found.append(by_task)
    exact = [{task: fmean(right for right, _ in cells[task]) for task in EXACT} for cells in found]
    retained = [100 * fmean(each[task] / full[task][0] for task in EXACT) for each in exact]
    return Row(
        row.how,
        row.metric,
        row.allocation,
        100 * row.budget.kept / experts,
        round(fmean(retained), 1),
        [round(each, 1) for each in retained],
        {task: round(fmean(each[task] for each in exact), 1) for task in EXACT},
        {t: round(fmean(cells[t][0][1] for cells in found), 2) for t in OPEN if all(t in cells for cells in found)},
    )


def _splits(rule: Patterns, budget: Budget) -> dict[str, list[int]]:
    """Experts a layer: each task's own split; the slots of a worker that serves them all."""
    own: dict[str, Iterable[int]] = {t: rule.specialists[t].kept(budget).sum(axis=1) for t in STORED}
    return {name: [int(n) for n in each] for name, each in {**own, "slots": rule.slots(budget) or ()}.items()}


def _overlap(rule: Patterns, budget: Budget) -> dict[str, float]:
    """Share of a task's experts that another task keeps too, over all pairs."""
    table = overlap([rule.specialists[task] for task in STORED], budget)
    pairs = [float(table[i, j]) for i in range(len(STORED)) for j in range(i)]
    return {"least": round(min(pairs), 2), "mean": round(fmean(pairs), 2), "most": round(max(pairs), 2)}
