"""What to do about one PrunedModel: ``plan(observed, release, …)`` is a value, printable and testable. Pure.

A spec that is refused changes no child but the number of workers, where the served name passes on or comes back: what
was running keeps running, on the spec before. While the pack or the
patterns of a changed spec are not there yet, or failed, workers keep their template too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from premoe_operator.api.reasons import ConditionType, Reason
from premoe_operator.api.release import Release
from premoe_operator.api.status import PrunedModelStatus
from premoe_operator.children import surroundings
from premoe_operator.decide import conditions
from premoe_operator.decide.acceptance import acceptance, with_facts
from premoe_operator.decide.changes import Changes, changes, planned_jobs
from premoe_operator.decide.conditions import Verdict
from premoe_operator.decide.handover import handed_over, heirs, may_pass
from premoe_operator.decide.observed import Observed, StoreFailure
from premoe_operator.decide.pods import Trouble, troubles
from premoe_operator.decide.rollout import Rollout, rollout
from premoe_operator.decide.situation import (
    PlannedJob,
    Situation,
    WorkerCounts,
    fresh_resolved,
    read_situation,
    read_status,
    serving_model_id,
    template_hash,
    with_workers,
    worker_counts,
    workers_lag,
)
from premoe_operator.decide.status import build_status, preload_status
from premoe_operator.kube.claims import holder
from premoe_operator.kube.kinds import CERTIFICATE
from premoe_operator.kube.objects import Json, ObjectKey, is_deleting, key_of
from premoe_runtime.formats.errors import InvalidInput

SOON_S = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write, and the status that goes with what was observed."""

    changes: Changes = field(default_factory=Changes)
    status: PrunedModelStatus | None = None
    """``None``: the status is right as it is."""
    requeue_after_s: float | None = None
    """Seconds after which to look again although no watch says so."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return self.status is None and not self.changes.writes


def plan(observed: Observed, release: Release, *, now: str, poll_s: float) -> Plan:
    """``now`` is RFC 3339; ``poll_s`` the seconds between two looks at what no watch shows."""
    model = observed.model
    if is_deleting(model):
        return Plan()  # garbage collection takes the children; nothing of ours holds the object back
    try:
        situation = read_situation(model, observed.children, release)
    except InvalidInput as error:
        return _not_understood(model, str(error), now)
    found = troubles(observed.pods or (), observed.events)
    resolved = with_facts(fresh_resolved(situation), situation, observed.store)
    later = heirs(model, observed.rivals)
    passed = handed_over(situation.status, later, release.drain, now)
    situation = with_workers(situation, resolved, is_handed_over=passed is not None)
    parts: dict[ConditionType, Verdict] = {
        ConditionType.SPEC_ACCEPTED: acceptance(situation, observed, resolved),
        ConditionType.ARTIFACTS_READY: conditions.artifacts(situation, observed.store, found),
    }
    held_by = holder(model, observed.same_weights)
    patterns = conditions.patterns(situation, observed.missing_sources, found, held_by)
    if patterns is not None:
        parts[ConditionType.PATTERNS_READY] = patterns
    may_roll = all(verdict.holds for verdict in parts.values())
    workers = rollout(situation, observed.children, may_roll=may_roll)
    jobs = planned_jobs(
        situation,
        with_tasks=parts[ConditionType.SPEC_ACCEPTED].holds and bool(resolved.layers),
        with_set=held_by is None,
    )
    accepted = parts[ConditionType.SPEC_ACCEPTED]
    wanted = _wanted(situation, accepted, jobs, workers)
    counts = worker_counts(situation.deployment)
    lags = not counts.is_observed or workers_lag(situation.deployment)
    settled = may_roll and _has_moved(situation, workers) and not lags
    todo = changes(wanted, observed, situation, settled=settled, held=held_by is not None)
    if _is_refused(accepted):
        todo = Changes(apply=todo.apply)
    parts[ConditionType.CHILDREN_APPLIED] = conditions.children_applied(todo.foreign, todo.leaving, observed.refusals)
    parts[ConditionType.WORKERS_AVAILABLE] = conditions.workers(situation, counts, found)
    _add_optional_parts(parts, situation, observed.children, workers, wanted, found)
    status = build_status(
        situation,
        verdicts=conditions.summed_up(
            parts, counts=counts, suspended=situation.inputs.spec.suspend, serving=_other_model(situation, counts)
        ),
        resolved=workers.resolved(resolved),
        counts=counts,
        found=found,
        preload=preload_status(situation, observed.preloads),
        passed=passed,
        now=now,
    )
    return Plan(
        changes=todo,
        status=None if model.get("status") and status == situation.status else status,
        requeue_after_s=_requeue_after_s(situation, parts, todo, observed, poll_s, passes=may_pass(passed, later)),
    )


def _other_model(situation: Situation, counts: WorkerCounts) -> str:
    """Id of the pack that is served in place of the one that the spec asks for; empty: none, or the same."""
    serving = serving_model_id(situation) if counts.ready else ""
    return "" if serving == situation.packed_id else serving


def _has_moved(situation: Situation, workers: Rollout) -> bool:
    """Whether no worker is left of another template than the present one, as far as the Deployment says."""
    return situation.deployment is None or template_hash(situation.deployment) == workers.wanted_hash


def _not_understood(model: Json, message: str, now: str) -> Plan:
    """Only the status changes: children of a spec that nobody understands stay as they are."""
    status = read_status(model)
    generation = int(model["metadata"].get("generation", 0))
    refused = Verdict("False", Reason.SPEC_INVALID, message)
    verdicts = {ConditionType.READY: refused, ConditionType.SPEC_ACCEPTED: refused}
    fresh = conditions.dated(verdicts, status.conditions, generation=generation, now=now)
    kept = [condition for condition in status.conditions if condition.type not in verdicts]
    changed = status.model_copy(
        update={"observed_generation": generation, "conditions": [*fresh, *kept], "reason": refused.reason.value}
    )
    return Plan(status=None if model.get("status") and changed == status else changed)


def _is_refused(accepted: Verdict) -> bool:
    """Whether children have to stay as they are."""
    return not accepted.holds and accepted.reason not in (Reason.BUDGET_IMPOSSIBLE, Reason.MEMORY_TOO_SMALL)


def _wanted(situation: Situation, accepted: Verdict, jobs: Sequence[PlannedJob], workers: Rollout) -> tuple[Json, ...]:
    """The children that there should be, in order of creation; of a refused spec only those that may change."""
    if not _is_refused(accepted):
        carriers = (child for child in (workers.revision, workers.deployment) if child is not None)
        return (*surroundings(situation.inputs), *(job.wanted for job in jobs), *carriers)
    returns = situation.status.handed_over is not None and accepted.reason is not Reason.SERVED_NAME_CONFLICT
    moves = situation.inputs.is_handed_over or returns
    return (workers.deployment,) if moves and workers.deployment is not None else ()


def _add_optional_parts(
    parts: dict[ConditionType, Verdict],
    situation: Situation,
    children: Mapping[ObjectKey, Json],
    workers: Rollout,
    wanted: tuple[Json, ...],
    found: tuple[Trouble, ...],
) -> None:
    """Conditions of what is not always there."""
    for child in wanted:
        if key_of(child).kind is CERTIFICATE:
            parts[ConditionType.CERTIFICATE_READY] = conditions.certificate(children.get(key_of(child)))
    rolling = conditions.progressing(situation, worker_counts(situation.deployment), workers.wanted_hash, found)
    if rolling is not None:
        parts[ConditionType.PROGRESSING] = rolling
    if workers.deployment is not None and workers.spec_hash == workers.wanted_hash:
        parts[ConditionType.TEMPLATE_OUTDATED] = conditions.template_outdated(workers.is_outdated)


def _requeue_after_s(
    situation: Situation,
    parts: Mapping[ConditionType, Verdict],
    todo: Changes,
    observed: Observed,
    poll_s: float,
    *,
    passes: bool,
) -> float | None:
    """Poll only what no watch shows: pods, the store, ConfigMaps of others, objects that are not ours, and the time
    after which the served name passes on.
    """
    if todo.leaving:
        return SOON_S
    jobs = planned_jobs(situation, with_tasks=True, with_set=True)
    certificate = parts.get(ConditionType.CERTIFICATE_READY)
    waits = (
        certificate is not None and not certificate.holds,
        bool(todo.foreign),
        isinstance(observed.store, StoreFailure),
        bool(observed.missing_sources),
        passes,
        observed.pods is not None and any(not job.state.is_finished for job in jobs),
        observed.pods is not None and workers_lag(situation.deployment),
    )
    return poll_s if any(waits) else None
