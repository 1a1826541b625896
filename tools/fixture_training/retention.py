"""What pruned models keep, by the product's own profiles, rankings and splits: rules, allocations, seeds, budgets.

Every answer count is kept in a file beside the checkpoint's work, so that a run that is stopped goes on where it was.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
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
from premoe_runtime.offline.evaluation.rules import Patterns
from premoe_runtime.offline.evaluation.variants import Run, evaluate
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


class Answers:
    """Right answers and perplexity of the model on test prompts, whole or pruned; remembers what it has measured."""

    def __init__(self, model: SlotModel, prompts: int, memory: Path | None) -> None:
        self._model, self._memory, self._prompts = model, memory, prompts
        known = json.loads(memory.read_text(encoding="utf-8")) if memory and memory.exists() else {}
        self._known: dict[str, list[float]] = known

    def of(self, run: Run, prompts: int | None = None) -> tuple[float, float]:
        """Per cent of right answers, and perplexity of the given ones."""
        limit = min(prompts or self._prompts, OPEN_PROMPTS if run.task in OPEN else self._prompts)
        kept = run.kept()
        mask = "" if kept is None else blake2b(kept.tobytes(), digest_size=12).hexdigest()
        key = f"{self._model.manifest.weights_id[:12]} {run.task} {limit} {mask}"
        if key not in self._known:
            outcome = next(evaluate(self._model, {run.task: test_documents(run.task, limit)}, [run]))
            self._known[key] = [100 * outcome.accuracy, outcome.perplexity]
            if self._memory:
                self._memory.write_text(json.dumps(self._known), encoding="utf-8")
        right, perplexity = self._known[key]
        return right, perplexity


def test_documents(task: str, count: int) -> list[Example]:
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
    """All figures of pruned models; ``advance`` is called before each of ``steps()`` rows."""
    answers = Answers(model, sizes.pruned, memory)
    full = {task: answers.of(Run(task, "full", None, None)) for task in STORED}
    by_seed = [profiles(model, seed) for seed in SEEDS]
    made = {
        (metric, allocation): [
            Patterns.by_rule(each, metric, allocation, seed=seed) for seed, each in zip(SEEDS, by_seed, strict=True)
        ]
        for metric, allocation in product(RULES, ALLOCATIONS)
    }
    budgets = [Budget(model.manifest.top_k, model.manifest.num_experts // share) for share in SHARES]
    rows = []
    for budget, (how, metric, allocation, plans) in product(budgets, _plans(made)):
        advance(f"{how}, {metric} {allocation}, {budget}")
        percent = 100 * budget.kept / model.manifest.num_experts
        rows.append(_row(how, metric, allocation, percent, full, answers, [plan(budget) for plan in plans], sizes))
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
    return len(SHARES) * len(list(_plans({rule: [] for rule in product(RULES, ALLOCATIONS)})))


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


def _row(
    how: str,
    metric: str,
    allocation: str,
    percent: float,
    full: dict[str, tuple[float, float]],
    answers: Answers,
    seeds: list[list[Run]],
    sizes: Sizes,
) -> Row:
    limit = sizes.wrong if how == "wrong specialist" else None
    found: list[dict[str, list[tuple[float, float]]]] = []
    for runs in seeds:
        by_task: dict[str, list[tuple[float, float]]] = {}
        for run in runs:
            by_task.setdefault(run.task, []).append(answers.of(run, limit))
        found.append(by_task)
    exact = [{task: fmean(right for right, _ in cells[task]) for task in EXACT} for cells in found]
    retained = [100 * fmean(each[task] / full[task][0] for task in EXACT) for each in exact]
    return Row(
        how,
        metric,
        allocation,
        percent,
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
