"""Building a pattern set from profiles: pure, from values to values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from premoe_runtime.formats.allocation import Splits
from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.budget import Budget, usual_budgets
from premoe_runtime.formats.choices import Allocation, OnUnknown
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern import GENERALIST_TASK, Metric, Pattern
from premoe_runtime.formats.pattern_set import Member, PatternSet, SetDocument
from premoe_runtime.formats.set_card import Expected, Retention
from premoe_runtime.formats.signature import unit
from premoe_runtime.formats.space import Space
from premoe_runtime.offline.patterns.bounds import Bounds
from premoe_runtime.offline.patterns.cutoffs import Tightness
from premoe_runtime.offline.patterns.derive import generalist, mean_retained_mass, specialist
from premoe_runtime.offline.patterns.tellable import TaskVectors, space_for, tell
from premoe_runtime.offline.profile.record import Profile, check_same_weights, merge
from premoe_runtime.offline.profile.scores import find, has

MIN_PROMPTS = 20
MAX_EXEMPLARS = 128
DEFAULT_QUANTILE = 0.99
WIDE_QUANTILE = 0.95
MARGIN = 0.4


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How patterns are scored and tasks recognised (``cutoffs.cutoff_of`` says how the cutoffs come about).

    exemplars  None: a prompt is compared with each task's centre, where there are several tasks; else with the nearest
               of at most this many stored prompts a task, never more than half of them
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
    exemplars: int | None = None
    neighbours: int = 5
    seed: int = 0
    bounds: Bounds = field(default_factory=Bounds)
    budgets: tuple[Budget, ...] = ()
    on_unknown: OnUnknown = "generalist"

    @property
    def tightness(self) -> Tightness:
        return Tightness(self.quantile, self.wide_quantile, self.margin)


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
    space, found = placed([_signatures(profile) for profile in tasks], options.exemplars)
    telling = tell(found, options.neighbours, options.tightness)
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
        members=(*_members(specialists, found, telling.cutoffs), _generalist_member(pool)),
        generalist_id=pool.pattern_id,
        generalist_retention=tuple(
            Retention(budget=str(budget), mass=mean_retained_mass(pool, tasks, budget)) for budget in budgets
        ),
        on_unknown=options.on_unknown,
        expected=Expected(recognised=telling.recognised, abstained=telling.abstained),
        exemplars_digest="",
    )
    shares = None
    if allocation == "shared":
        shares = Splits.of([pattern.scores for pattern in specialists], tasks[0].top_k)
    made = PatternSet.make(document, np.concatenate([each.exemplars for each in found]), shares, space)
    return BuiltSet(made, (*specialists, pool), tuple(_notes(tasks, found, options)))


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


def placed(signatures: Sequence[F32], exemplars: int | None) -> tuple[Space | None, list[TaskVectors]]:
    """Each task's signatures, unit f32[N, D], in the space where they are compared, and that space."""
    space = space_for(signatures)
    most = MAX_EXEMPLARS if exemplars is None and space is None else exemplars
    return space, [
        TaskVectors(
            one if space is None else space.of(one),
            None if most is None else np.array(split_signatures(len(one), most)[0], np.int64),
        )
        for one in signatures
    ]


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
                f"quantile {quantile} is outside 0 to 1; give for example 0.99", reason="QUANTILE_INVALID"
            )
    if not 0 <= options.margin < 1:
        raise InvalidInput(f"margin {options.margin} is outside 0 to 1; give for example 0.25", reason="MARGIN_INVALID")
    if (options.exemplars is not None and options.exemplars < 1) or options.neighbours < 1:
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


def _signatures(profile: Profile) -> F32:
    count = len(profile.signatures)
    if count < MIN_PROMPTS:
        raise InvalidInput(
            f"profile of task {profile.task} has {count} prompts; at least {MIN_PROMPTS} are needed, because its "
            "cutoff is set by prompts that are no exemplars",
            reason="PROMPTS_TOO_FEW",
        )
    return unit(profile.signatures)


def _members(patterns: Sequence[Pattern], tasks: Sequence[TaskVectors], cutoffs: Sequence[float]) -> list[Member]:
    members: list[Member] = []
    first = 0
    for pattern, task, cutoff in zip(patterns, tasks, cutoffs, strict=True):
        count = len(task.exemplars)
        members.append(
            Member(
                pattern_id=pattern.pattern_id,
                task=pattern.task,
                kind="specialist",
                cutoff=cutoff,
                first_exemplar=first,
                exemplars=count,
                held_out=task.held_out,
            )
        )
        first += count
    return members


def _generalist_member(pattern: Pattern) -> Member:
    return Member(pattern_id=pattern.pattern_id, task=pattern.task, kind="generalist")


def _notes(tasks: Sequence[Profile], found: Sequence[TaskVectors], options: BuildOptions) -> list[str]:
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
        f"task {profile.task}: {len(each.vectors)} prompts are too few for a {options.quantile:.1%} quantile, so its "
        f"cutoff rests on their lowest score; give at least {wanted} prompts"
        for profile, each in zip(tasks, found, strict=True)
        if len(each.vectors) < wanted // 2
    ]
