"""Building a pattern set from profiles: pure, from values to values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from premoe_runtime.formats.allocation import Splits
from premoe_runtime.formats.arrays import F32, F64
from premoe_runtime.formats.budget import Budget, usual_budgets
from premoe_runtime.formats.choices import Allocation, OnUnknown
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern import GENERALIST_TASK, Metric, Pattern
from premoe_runtime.formats.pattern_set import Member, PatternSet, Retention, SetDocument
from premoe_runtime.formats.recognition import task_scores
from premoe_runtime.formats.signature import unit
from premoe_runtime.offline.patterns.bounds import Bounds
from premoe_runtime.offline.patterns.derive import generalist, mean_retained_mass, specialist
from premoe_runtime.offline.profile.record import Profile, check_same_weights, merge
from premoe_runtime.offline.profile.scores import find, has

MIN_PROMPTS = 20
MAX_EXEMPLARS = 128
DEFAULT_QUANTILE = 0.985
WIDE_QUANTILE = 0.9
MARGIN = 0.25
NEAREST_OTHERS = 0.99


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How patterns are scored and tasks recognised (``cutoff_of`` says how the cutoffs come about).

    exemplars  at most this many calibration prompts a task are stored; never more than half of them
    budgets    at which the generalist's retained mass is recorded; by default the usual ones
    metric     None: impact where every profile weighs it, else PEU
    bounds     what every pattern keeps at any budget
    allocation how budgets spread over the layers; None: shared where the metric compares between layers
    """

    metric: Metric | None = None
    allocation: Allocation | None = None
    quantile: float = DEFAULT_QUANTILE
    wide_quantile: float = WIDE_QUANTILE
    margin: float = MARGIN
    exemplars: int = MAX_EXEMPLARS
    neighbours: int = 5
    seed: int = 0
    bounds: Bounds = field(default_factory=Bounds)
    budgets: tuple[Budget, ...] = ()
    on_unknown: OnUnknown = "generalist"


@dataclass(frozen=True, slots=True)
class BuiltSet:
    """A set, its patterns (specialists by task, then the generalist), and what the caller should be told."""

    pattern_set: PatternSet
    patterns: tuple[Pattern, ...]
    notes: tuple[str, ...]


def build_set(profiles: Sequence[Profile], options: BuildOptions | None = None) -> BuiltSet:
    """Derive patterns, exemplars and cutoffs. Profiles of the same task are merged first.

    Raises InvalidInput: no profile, profiles of different weights, a task named "generalist", a quantile outside
    (0, 1), or a task with fewer than 20 prompts.
    """
    options = options or BuildOptions()
    _check(profiles, options)
    tasks = by_task(profiles)
    metric, allocation = settle(options, tasks)
    options.bounds.check(tasks[0].layer_experts, options.budgets, allocation)
    derived = [specialist(profile, metric, seed=options.seed) for profile in tasks]
    derived.append(generalist(tasks, metric, seed=options.seed))
    *specialists, pool = (replace(options.bounds.applied(each), allocation=allocation) for each in derived)
    splits = [_split(profile, options) for profile in tasks]
    cutoffs = [_cutoff(index, splits, options) for index in range(len(tasks))]
    budgets = options.budgets or tuple(
        budget
        for budget in usual_budgets(tasks[0].top_k, pool.num_experts)
        if options.bounds.allows(budget, tasks[0].layer_experts, allocation)
    )
    document = SetDocument(
        weights_id=tasks[0].weights_id,
        metric=metric,
        semantics="selection",
        signature=tasks[0].signature,
        neighbours=options.neighbours,
        quantile=options.quantile,
        wide_quantile=options.wide_quantile,
        margin=options.margin,
        members=(*_members(specialists, splits, cutoffs), _generalist_member(pool)),
        generalist_id=pool.pattern_id,
        generalist_retention=tuple(
            Retention(budget=str(budget), mass=mean_retained_mass(pool, tasks, budget)) for budget in budgets
        ),
        on_unknown=options.on_unknown,
        exemplars_digest="",
    )
    shares = None
    if allocation == "shared":
        shares = Splits.of([pattern.scores for pattern in specialists], tasks[0].top_k)
    made = PatternSet.make(document, np.concatenate([split.exemplars for split in splits]), shares)
    return BuiltSet(made, (*specialists, pool), tuple(_notes(tasks, splits, options)))


def settle(options: BuildOptions, profiles: Sequence[Profile]) -> tuple[Metric, Allocation]:
    """The metric and the allocation that a set of these profiles is built with."""
    usual = "impact" if all(has(profile.state, "impact") for profile in profiles) else "peu"
    metric = find(options.metric or usual).name
    return metric, options.allocation or ("shared" if find(metric).comparable else "uniform")


def split_signatures(count: int, max_exemplars: int) -> tuple[list[int], list[int]]:
    """Which of ``count`` prompts become exemplars, and which are held out for the cutoff.

    Exemplars are spread evenly over the file, so that a sorted file does not leave a part of the task unseen; at
    most half of the prompts are taken, because the cutoff is a quantile of the others.
    """
    taken = min(max_exemplars, count // 2)
    chosen = [index * count // taken for index in range(taken)]
    rest = set(range(count)).difference(chosen)
    return chosen, sorted(rest)


def cutoff_of(own: F64, others: F64, options: BuildOptions) -> float:
    """The score at which a task is recognised, from its held-out prompts' scores and other tasks' prompts' scores.

    A plain quantile of ``own`` would refuse new wordings of a narrow task, which lie just outside what calibration
    showed, and accept foreign text in a wide one (open text). So distances d = 1 - score are compared:

    narrow  the nearest other prompts lie beyond the task's own: d = own^(1 - margin) * others^margin, from the
            ``quantile`` of its own and the 1 % nearest others. The wider the gap, the more room for new wordings.
    wide    others come as near as its own: d = its own ``wide_quantile``, which is the tighter one.
    """
    inside = _distance(own, options.quantile)
    if len(others):
        outside = 1.0 - float(np.quantile(others, NEAREST_OTHERS))
        if outside <= inside:
            return 1.0 - min(inside, _distance(own, options.wide_quantile))
        if inside > 0:
            return 1.0 - float(inside ** (1 - options.margin) * outside**options.margin)
    return 1.0 - inside


def _distance(own: F64, quantile: float) -> float:
    """The distance within which at least ``quantile`` of these prompts lie."""
    return 1.0 - float(np.quantile(own, 1 - quantile, method="lower"))


def usable(profiles: Sequence[Profile]) -> tuple[list[Profile], list[str]]:
    """Profiles of the tasks that have prompts enough for a cutoff, and a note about each task left out."""
    counts: dict[str, int] = {}
    for profile in profiles:
        counts[profile.task] = counts.get(profile.task, 0) + len(profile.signatures)
    notes = [
        f"task {task} is left out: it has {count} prompts, and at least {MIN_PROMPTS} are needed; profile more, "
        f"or remove it with `premoe profile rm … {task}`"
        for task, count in counts.items()
        if count < MIN_PROMPTS
    ]
    return [profile for profile in profiles if counts[profile.task] >= MIN_PROMPTS], notes


def prompts_wanted(quantile: float = DEFAULT_QUANTILE) -> int:
    """Prompts of a task at which its cutoff is a quantile of those held out, and not their lowest score."""
    return 2 * round(1 / (1 - quantile))


def _check(profiles: Sequence[Profile], options: BuildOptions) -> None:
    if not profiles:
        raise InvalidInput("no profiles given; make some with `premoe profile`", reason="PROFILES_MISSING")
    check_same_weights(profiles)
    for quantile in (options.quantile, options.wide_quantile):
        if not 0 < quantile < 1:
            raise InvalidInput(
                f"quantile {quantile} is outside 0 to 1; give for example 0.985", reason="QUANTILE_INVALID"
            )
    if not 0 <= options.margin < 1:
        raise InvalidInput(f"margin {options.margin} is outside 0 to 1; give for example 0.25", reason="MARGIN_INVALID")
    if options.exemplars < 1 or options.neighbours < 1:
        raise InvalidInput("exemplars and neighbours must be at least 1", reason="EXEMPLARS_INVALID")
    for profile in profiles:
        if profile.task == GENERALIST_TASK:
            raise InvalidInput('a task may not be named "generalist"; profile it again', reason="TASK_RESERVED")
    for budget in options.budgets:
        budget.check(top_k=profiles[0].top_k, num_experts=profiles[0].state.shape[1])


def by_task(profiles: Sequence[Profile]) -> list[Profile]:
    """One profile a task, sorted by its name: those of the same task are merged. Raises InvalidInput like ``merge``."""
    groups: dict[str, list[Profile]] = {}
    for profile in sorted(profiles, key=lambda profile: (profile.task, profile.profile_id)):
        groups.setdefault(profile.task, []).append(profile)
    return [merge(group) if len(group) > 1 else group[0] for group in groups.values()]


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """One task's signatures, unit rows: stored ones, and those that set its cutoff."""

    exemplars: F32
    held_out: F32


def _split(profile: Profile, options: BuildOptions) -> _Split:
    count = len(profile.signatures)
    if count < MIN_PROMPTS:
        raise InvalidInput(
            f"profile of task {profile.task} has {count} prompts; at least {MIN_PROMPTS} are needed, because half "
            "of them are held out to set its cutoff",
            reason="PROMPTS_TOO_FEW",
        )
    chosen, rest = split_signatures(count, options.exemplars)
    vectors = unit(profile.signatures)
    return _Split(vectors[chosen], vectors[rest])


def _cutoff(index: int, splits: Sequence[_Split], options: BuildOptions) -> float:
    task = splits[index]
    foreign = [part for other in splits if other is not task for part in (other.exemplars, other.held_out)]
    others = np.concatenate([np.zeros((0, task.exemplars.shape[1]), np.float32), *foreign])
    return cutoff_of(
        task_scores(task.exemplars, task.held_out, options.neighbours),
        task_scores(task.exemplars, others, options.neighbours),
        options,
    )


def _members(patterns: Sequence[Pattern], splits: Sequence[_Split], cutoffs: Sequence[float]) -> list[Member]:
    members: list[Member] = []
    first = 0
    for pattern, split, cutoff in zip(patterns, splits, cutoffs, strict=True):
        members.append(
            Member(
                pattern_id=pattern.pattern_id,
                task=pattern.task,
                kind="specialist",
                cutoff=cutoff,
                first_exemplar=first,
                exemplars=len(split.exemplars),
                held_out=len(split.held_out),
            )
        )
        first += len(split.exemplars)
    return members


def _generalist_member(pattern: Pattern) -> Member:
    return Member(pattern_id=pattern.pattern_id, task=pattern.task, kind="generalist")


def _notes(tasks: Sequence[Profile], splits: Sequence[_Split], options: BuildOptions) -> list[str]:
    wanted = prompts_wanted(options.quantile)
    notes = []
    for profile in tasks:
        parts = profile.calibration
        if len({part.digest for part in parts}) < len(parts):
            notes.append(
                f"task {profile.task}: several of its profiles are of the same text, which counts once for each; "
                "name the right ones with --profiles"
            )
        elif len(parts) > 1:
            notes.append(f"task {profile.task}: {len(parts)} profiles are merged; `premoe profile list` shows them")
    return notes + [
        f"task {profile.task}: {len(split.held_out)} held-out prompts are too few for a {options.quantile:.1%} "
        f"quantile, so its cutoff rests on their lowest score; give at least {wanted} prompts"
        for profile, split in zip(tasks, splits, strict=True)
        if len(split.held_out) < wanted // 2
    ]
