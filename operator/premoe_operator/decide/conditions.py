"""Conditions: one verdict for each part of a PrunedModel, and the two that sum them up. Pure.

Available: at least one worker serves; a worker is ready only after its own verified forward. Ready: everything is as
the spec says, so with no workers wanted too. Parts that are not configured have no condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from premoe_operator.api.reasons import ConditionType, Reason
from premoe_operator.api.status import Condition
from premoe_operator.decide.jobs import failure_reason, running_trouble
from premoe_operator.decide.observed import Refusal, StoreFailure
from premoe_operator.decide.pods import Trouble
from premoe_operator.decide.situation import PlannedJob, Situation, WorkerCounts, template_hash
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey

MESSAGE_MAX = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition without its times."""

    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str = ""

    @property
    def holds(self) -> bool:
        return self.status == "True"


Verdicts = Mapping[ConditionType, Verdict]

_PARTS_OF_READY = (
    ConditionType.SPEC_ACCEPTED,
    ConditionType.CHILDREN_APPLIED,
    ConditionType.ARTIFACTS_READY,
    ConditionType.PATTERNS_READY,
    ConditionType.CERTIFICATE_READY,
    ConditionType.WORKERS_AVAILABLE,
)
"""In the order in which the first that does not hold names the reason."""


def dated(verdicts: Verdicts, previous: Sequence[Condition], *, generation: int, now: str) -> list[Condition]:
    """Conditions in a fixed order; the time of the last change is kept while a status stays as it is."""
    known = {condition.type: condition for condition in previous}
    dated_conditions = []
    for kind in ConditionType:
        verdict = verdicts.get(kind)
        if verdict is None:
            continue
        before = known.get(kind.value)
        since = before.last_transition_time if before is not None and before.status == verdict.status else now
        dated_conditions.append(
            Condition(
                type=kind.value,
                status=verdict.status,
                reason=verdict.reason.value,
                message=verdict.message[:MESSAGE_MAX],
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return dated_conditions


def summed_up(parts: Verdicts, *, counts: WorkerCounts, suspended: bool, serving: str = "") -> Verdicts:
    """The parts with Ready and Available before them; ``serving`` is the pack that workers serve meanwhile."""
    ready = _ready(parts)
    if serving and not ready.holds:
        ready = replace(ready, message=f"{ready.message or ready.reason}; workers serve {serving} meanwhile")
    return {ConditionType.READY: ready, ConditionType.AVAILABLE: _available(parts, counts, suspended), **parts}


def _ready(parts: Verdicts) -> Verdict:
    for kind in _PARTS_OF_READY:
        verdict = parts.get(kind)
        if verdict is None:
            continue
        if not verdict.holds:
            return Verdict("False", verdict.reason, verdict.message)
    progressing = parts.get(ConditionType.PROGRESSING)
    if progressing is not None and progressing.reason != Reason.ROLLED_OUT:
        return Verdict("False", progressing.reason, progressing.message)
    workers = parts.get(ConditionType.WORKERS_AVAILABLE)
    return Verdict("True", workers.reason if workers is not None else Reason.ALL_READY, "everything is as specified")


def _available(parts: Verdicts, counts: WorkerCounts, suspended: bool) -> Verdict:
    if counts.ready:
        return Verdict("True", Reason.ALL_READY if counts.ready >= counts.wanted else Reason.LOADING, _ready_of(counts))
    if suspended:
        return Verdict("False", Reason.SUSPENDED, "spec.suspend is set")
    workers = parts.get(ConditionType.WORKERS_AVAILABLE)
    if workers is not None and workers.reason == Reason.HANDED_OVER:
        return Verdict("False", Reason.HANDED_OVER, workers.message)
    if workers is None or workers.holds:
        return Verdict("False", Reason.SCALED_TO_ZERO, "no workers are wanted")
    return Verdict("False", workers.reason, workers.message)


def children_applied(
    foreign: Sequence[Json], leaving: Sequence[Json], refusals: Mapping[ObjectKey, Refusal]
) -> Verdict:
    """Whether every child is as wanted, ``foreign`` and ``leaving`` being objects that have a child's name."""
    if foreign:
        return Verdict(
            "False", Reason.FOREIGN_OBJECT, f"{_named(foreign[0])} exists and is not ours; rename or delete it"
        )
    if refusals:
        refusal = next(iter(refusals.values()))
        return Verdict("False", refusal.reason, refusal.message)
    if leaving:
        return Verdict("False", Reason.WAITING_FOR_DELETION, f"{_named(leaving[0])} is still being deleted")
    return Verdict("True", Reason.APPLIED)


def artifacts(situation: Situation, store: object, found: Sequence[Trouble]) -> Verdict:
    """Whether the pack exists and its facts are known."""
    pack = situation.pack
    if pack.state.phase != "Complete":
        return _job_verdict(pack, found, Reason.PACKING, "the checkpoint is being packed")
    if not pack.state.is_read:
        return Verdict("Unknown", Reason.PACKING, "the pack Job has ended; its result is being read")
    if not situation.packed_id:
        return Verdict("False", Reason.PACK_FAILED, "the pack Job named no model id")
    if situation.has_facts or not isinstance(store, StoreFailure):
        return Verdict("True", Reason.PACKED)
    status: Literal["False", "Unknown"] = "False" if store.reason == Reason.MANIFEST_NOT_FOUND else "Unknown"
    return Verdict(status, Reason(store.reason), store.message)


def patterns(
    situation: Situation, missing: Sequence[str], found: Sequence[Trouble], held_by: ModelKey | None
) -> Verdict | None:
    """Whether the tasks' pattern set is live; ``None`` where the spec names no tasks.

    ``held_by`` is the PrunedModel whose set is live for these weights instead.
    """
    tasks = situation.inputs.spec.patterns.tasks
    if not tasks:
        return None
    profile, built = situation.profile, situation.patterns
    if profile is None or built is None:
        return Verdict("False", Reason.WAITING, "tasks are profiled once the pack exists")
    if profile.state.phase != "Complete":
        if missing:
            return Verdict("False", Reason.CONFIG_MAP_NOT_FOUND, missing[0])
        return _job_verdict(
            profile, found, Reason.PROFILING, f"{profile.state.completed} of {len(tasks)} tasks are profiled"
        )
    if held_by is not None:
        name = f"{held_by.namespace}/{held_by.name}"
        message = (
            f"{name} is older and wants another pattern set of the same weights, of which one can be live; "
            "give both the same spec.patterns and spec.budget"
        )
        return Verdict("False", Reason.PATTERN_SET_CONFLICT, message)
    if built.state.phase != "Complete":
        return _job_verdict(built, found, Reason.BUILDING, "the pattern set is being built")
    return Verdict("True", Reason.BUILT)


def certificate(found: Json | None) -> Verdict:
    """Whether cert-manager has issued the workers' certificate."""
    conditions = (found or {}).get("status", {}).get("conditions") or []
    ready = next((entry for entry in conditions if entry.get("type") == "Ready"), None)
    if ready is not None and ready.get("status") == "True":
        return Verdict("True", Reason.ISSUED)
    if ready is not None and ready.get("reason") in ("Failed", "Denied", "InvalidRequest", "Invalid"):
        return Verdict("False", Reason.CERTIFICATE_NOT_ISSUED, str(ready.get("message", "")))
    message = str(ready.get("message", "")) if ready is not None else ""
    return Verdict("False", Reason.ISSUING, message or "cert-manager has not issued the certificate yet")


def workers(situation: Situation, counts: WorkerCounts, found: Sequence[Trouble]) -> Verdict:
    """Whether as many workers serve as are wanted."""
    spec = situation.inputs.spec
    deployment = situation.deployment
    if spec.suspend:
        if counts.replicas:
            return Verdict("False", Reason.SUSPENDED, f"{counts.replicas} workers are stopping")
        return Verdict("True", Reason.SUSPENDED, "spec.suspend is set")
    if situation.inputs.is_handed_over:
        if counts.replicas:
            return Verdict("False", Reason.HANDED_OVER, f"{counts.replicas} workers are stopping")
        return Verdict("True", Reason.HANDED_OVER, "another PrunedModel serves the name (status.handedOver)")
    if deployment is None:
        return Verdict("False", Reason.WAITING, "workers start once pack and patterns exist")
    if spec.workers.replicas == 0 and not counts.wanted and not counts.replicas:
        return Verdict("True", Reason.SCALED_TO_ZERO, "no workers are wanted")
    if counts.ready >= spec.workers.replicas and counts.wanted == spec.workers.replicas:
        return Verdict("True", Reason.ALL_READY, _ready_of(counts))
    refused = _deployment_condition(deployment, "ReplicaFailure")
    if refused.get("status") == "True":
        message = str(refused.get("message", ""))
        quota = "exceeded quota" in message
        return Verdict("False", Reason.QUOTA_EXCEEDED if quota else Reason.PODS_REFUSED, message)
    trouble = _worker_trouble(found)
    if trouble is not None:
        return Verdict("False", trouble.reason, f"pod {trouble.pod}: {trouble.message}")
    return Verdict("False", Reason.LOADING, _ready_of(counts))


def progressing(
    situation: Situation, counts: WorkerCounts, wanted_hash: str, found: Sequence[Trouble]
) -> Verdict | None:
    """Whether a rollout is under way, and what is wrong with its pods; ``None`` before there is a Deployment."""
    deployment = situation.deployment
    if deployment is None:
        return None
    trouble = _worker_trouble(found)
    cause = f"pod {trouble.pod}: {trouble.message}" if trouble is not None else ""
    late = _deployment_condition(deployment, "Progressing")
    if late.get("reason") == "ProgressDeadlineExceeded":
        message = f"no progress for {deployment['spec'].get('progressDeadlineSeconds')} s; {cause or _ready_of(counts)}"
        if deployment["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable") == "100%":
            message += "; rollout type Recreate has stopped the old workers already"
        return Verdict("False", Reason.PROGRESS_DEADLINE_EXCEEDED, message)
    is_current = bool(wanted_hash) and template_hash(deployment) == wanted_hash and counts.is_observed
    if is_current and counts.updated >= counts.wanted and counts.replicas <= counts.wanted:
        return Verdict("False", Reason.ROLLED_OUT)
    if trouble is not None:
        return Verdict("True", trouble.reason, cause)
    return Verdict("True", Reason.ROLLING_OUT, f"{counts.updated} of {counts.wanted} workers have the present template")


def template_outdated(outdated: bool) -> Verdict:
    """Whether this operator would render another worker template than the one in use."""
    if not outdated:
        return Verdict("False", Reason.UP_TO_DATE)
    message = "the operator or the release would make other pods now; change spec.workers.rollout.revision to roll"
    return Verdict("True", Reason.TEMPLATE_OUTDATED, message)


def _job_verdict(job: PlannedJob, found: Sequence[Trouble], running: Reason, message: str) -> Verdict:
    if job.state.phase == "Failed":
        if not job.state.is_read:
            return Verdict("Unknown", running, f"the {job.component} Job has failed; its result is being read")
        return Verdict("False", *failure_reason(job.component, job.state))
    if job.state.phase == "Suspended":
        return Verdict("False", Reason.SUSPENDED, f"the {job.component} Job is suspended")
    trouble = running_trouble(job.component, found)
    if trouble is None:
        return Verdict("False", running, message)
    reason = running if trouble.reason == Reason.WORKER_FAILED else trouble.reason
    return Verdict("False", reason, f"pod {trouble.pod}: {trouble.message}")


def _worker_trouble(found: Sequence[Trouble]) -> Trouble | None:
    return next((trouble for trouble in found if trouble.component == "worker"), None)


def _deployment_condition(deployment: Json, kind: str) -> Json:
    entries: list[Json] = deployment.get("status", {}).get("conditions") or []
    return next((entry for entry in entries if entry.get("type") == kind), {})


def _ready_of(counts: WorkerCounts) -> str:
    return f"{counts.ready} of {counts.wanted} workers serve"


def _named(obj: Json) -> str:
    return f"{obj['kind']} {obj['metadata']['name']}"
