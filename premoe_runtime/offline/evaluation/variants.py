"""What a stored set's patterns keep: every task full, under its specialist, and under what stands in for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.batches import MAX_TOKENS
from premoe_runtime.offline.calibration import Example
from premoe_runtime.offline.evaluation.exam import Answers, Examiner
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.evaluation.rules import Patterns

Variant = Literal["full", "specialist", "served", "generalist", "random", "wrong", "decided"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


@dataclass(frozen=True, slots=True)
class Run:
    """One task under one pattern at one budget; ``pattern`` and ``budget`` are None for the full model.

    ``slots`` are a worker's, layer by layer, for what is kept ``served`` by one; elsewhere the pattern's own split.
    """

    task: str
    variant: Variant
    budget: Budget | None
    pattern: Pattern | None
    """For ``wrong``: the specialist of the next stored task in alphabetical order. For ``decided``: what the set's
    recognition gives some of the prompts, or would if it knew the task."""
    slots: tuple[int, ...] | None = None

    def asked(self, top_k: int) -> Asked:
        """What an ``Examiner`` is asked of a model with this top-k. Raises InvalidInput like ``kept``."""
        at = f" at {self.budget}" if self.budget else ""
        return Asked(
            self.task, self.kept(), self.budget.active if self.budget else top_k, f"{self.task}, {self.variant}{at}"
        )

    def kept(self) -> Mask | None:
        """bool[L, E], or None for all experts. Raises InvalidInput like ``Pattern.kept``."""
        return self.pattern.kept(self.budget, self.slots) if self.pattern and self.budget else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave.

    correct     examples whose whole answer greedy decoding writes, end token included
    perplexity  of the given answers' tokens, end token left out
    mass, kl    means over examples, as ``Answers`` has them
    """

    run: Run
    examples: int
    correct: int
    perplexity: float
    mass: float
    kl: float = 0.0

    @property
    def accuracy(self) -> float:
        return self.correct / self.examples


def plan_runs(tasks: Sequence[str], budgets: Sequence[Budget], *rules: Patterns) -> list[Run]:
    """Every run of an evaluation, rule by rule. Raises NotFound for a task without a specialist."""
    for rule, task in product(rules, tasks):
        if task not in rule.specialists:
            known = ", ".join(sorted(rule.specialists)) or "no task"
            raise NotFound(f"no pattern for task {task!r}; the patterns given are for {known}", reason="TASK_UNKNOWN")
    runs = [Run(task, "full", None, None) for task in tasks]
    for rule, task, budget in product(rules, tasks, budgets):
        own = rule.specialists[task]
        compared: dict[Variant, Pattern | None] = {
            "specialist": own,
            "served": own if rule.splits is not None else None,
            "generalist": rule.generalist,
            "random": rule.random,
            "wrong": _other(task, rule.specialists),
        }
        for name, pattern in compared.items():
            if pattern is not None:
                runs.append(Run(task, name, budget, pattern, rule.slots(budget) if name == "served" else None))
    return runs


def evaluate(
    model: SlotModel,
    data: Mapping[str, Sequence[Example]],
    runs: Sequence[Run],
    *,
    max_tokens: int = MAX_TOKENS,
    spool: Path | None = None,
    advance: Callable[[float], None] = lambda _: None,
    stage: Callable[[str], None] = lambda what: None,
    passed_over: Callable[[str], None] = lambda place: None,
) -> Iterator[Outcome]:
    """Carry ``runs`` out; ``model`` and ``spool`` are what an ``Examiner`` takes.

    ``data`` holds every task's examples, all with answers. ``advance`` is told how many examples were run, ``stage``
    what is, ``passed_over`` which are not used. Raises InvalidInput: no example that fits, a budget the model cannot
    run, patterns of other weights.
    """
    manifest = model.manifest
    for run in runs:
        if run.budget is not None:
            run.budget.check(top_k=manifest.top_k, num_experts=manifest.num_experts)
        if run.pattern is not None and run.pattern.weights_id != manifest.weights_id:
            raise InvalidInput(
                f"pattern of task {run.pattern.task} belongs to weights {run.pattern.weights_id[:12]}, "
                f"the model has {manifest.weights_id[:12]}",
                reason="WEIGHTS_MISMATCH",
            )
    examiner = Examiner(model, data, max_tokens=max_tokens, spool=spool, passed_over=passed_over)
    asked = [run.asked(manifest.top_k) for run in runs]
    for run, answers in zip(runs, examiner.answers(asked, advance=advance, stage=stage), strict=True):
        yield _outcome(run, answers)


def retained_accuracy(outcomes: Sequence[Outcome], variant: Variant, budget: Budget) -> float | None:
    """Right answers under ``variant`` over right answers of the full model, all tasks pooled; None without any."""
    full = sum(outcome.correct for outcome in outcomes if outcome.run.variant == "full")
    kept = sum(
        outcome.correct for outcome in outcomes if outcome.run.variant == variant and outcome.run.budget == budget
    )
    return kept / full if full else None


def generalist_mass(outcomes: Sequence[Outcome], budget: Budget) -> float:
    """Router mass that the generalist keeps at ``budget``, mean over tasks; 0 without any such run."""
    masses = [o.mass for o in outcomes if o.run.variant == "generalist" and o.run.budget == budget]
    return sum(masses) / len(masses) if masses else 0.0


def _outcome(run: Run, answers: Answers) -> Outcome:
    return Outcome(
        run,
        len(answers.right),
        int(answers.right.sum()),
        answers.perplexity,
        float(answers.mass.mean()),
        float(answers.kl.mean()),
    )


def _other(task: str, specialists: Mapping[str, Pattern]) -> Pattern | None:
    names = sorted(specialists)
    other = names[(names.index(task) + 1) % len(names)]
    return None if other == task else specialists[other]
