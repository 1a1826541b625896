"""What a set's decisions are worth in answers: held-out prompts, what they are decided to run on, and how that does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import DecisionKind
from premoe_runtime.formats.pattern import GENERALIST_TASK, Pattern
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import recognise
from premoe_runtime.formats.set_card import Decided
from premoe_runtime.offline.evaluation.rules import Patterns
from premoe_runtime.offline.evaluation.variants import Outcome, Run

Decisions = Mapping[str, Counter[tuple[DecisionKind, str]]]
"""Of each task's prompts, how many were decided to run on what: a specialist's task, the generalist, or "" for none."""


def decisions_on(signatures: Mapping[str, F32], pattern_set: PatternSet) -> Decisions:
    """What the set makes of each task's prompts, f32[N, D], each by itself, as a retrieval service would.

    Raises InvalidInput: signatures that are not the set's.
    """
    found: dict[str, Counter[tuple[DecisionKind, str]]] = {}
    for task, rows in signatures.items():
        decided = [recognise(pattern_set, row) for row in rows]
        found[task] = Counter((one.kind, _runs(one.kind, one.task)) for one in decided)
    return found


def decided_runs(decisions: Decisions, budgets: Sequence[Budget], rule: Patterns) -> list[Run]:
    """Every task under its own specialist and whatever else its prompts run on, as one worker for all tasks serves."""
    return [
        Run(task, "decided", budget, pattern, rule.slots(budget))
        for task, counts in decisions.items()
        for pattern in _patterns(task, counts, rule)
        for budget in budgets
    ]


def worth(decisions: Decisions, budgets: Sequence[Budget], outcomes: Sequence[Outcome]) -> tuple[Decided, ...]:
    """Every way in which prompts were decided, by task and budget; ``outcomes`` hold ``decided_runs`` and full ones."""
    right = {(one.run.task, one.run.budget, _name(one.run)): one.accuracy for one in outcomes if _name(one.run)}
    full = {one.run.task: one.accuracy for one in outcomes if one.run.variant == "full"}
    found = []
    for (task, counts), budget in product(decisions.items(), budgets):
        own = right[task, budget, task]
        for (kind, pattern), count in counts.most_common():
            reached = {"full": full[task], "reject": 0.0}.get(kind)
            accuracy = right[task, budget, pattern] if reached is None else reached
            share = count / counts.total()
            lost = share * (own - accuracy)
            found.append(
                Decided(
                    task=task, budget=str(budget), kind=kind, pattern=pattern, share=share, accuracy=accuracy, lost=lost
                )
            )
    return tuple(found)


def _runs(kind: DecisionKind, task: str) -> str:
    return {"specialist": task, "generalist": GENERALIST_TASK}.get(kind, "")


def _patterns(task: str, counts: Mapping[tuple[DecisionKind, str], int], rule: Patterns) -> list[Pattern]:
    others = [name for _, name in counts if name not in ("", task, GENERALIST_TASK)]
    pool = [rule.generalist] if rule.generalist and ("generalist", GENERALIST_TASK) in counts else []
    return [rule.specialists[task], *(rule.specialists[name] for name in sorted(others)), *pool]


def _name(run: Run) -> str:
    return run.pattern.task if run.variant == "decided" and run.pattern else ""
