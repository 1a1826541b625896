"""The status of a PrunedModel as a whole value. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from premoe_operator.api.reasons import ConditionType, Reason
from premoe_operator.api.status import (
    Endpoints,
    HandedOver,
    LastFailure,
    PreloadStatus,
    Progress,
    PrunedModelStatus,
    Resolved,
)
from premoe_operator.children import grpc_endpoint, selector_text
from premoe_operator.decide.conditions import Verdict, Verdicts, dated
from premoe_operator.decide.observed import WorkerPreload
from premoe_operator.decide.pods import MESSAGE_MAX, Trouble
from premoe_operator.decide.situation import PlannedJob, Situation, WorkerCounts, serving_model_id, worker_counts
from premoe_operator.kube.objects import Json


def build_status(
    situation: Situation,
    *,
    verdicts: Verdicts,
    resolved: Resolved,
    counts: WorkerCounts,
    found: Sequence[Trouble],
    preload: PreloadStatus | None,
    passed: HandedOver | None,
    now: str,
) -> PrunedModelStatus:
    """Everything but the conditions' times and the last failure is computed anew."""
    owner, spec = situation.inputs.owner, situation.inputs.spec
    tasks = len(spec.patterns.tasks)
    profiled = situation.profile.state.completed if situation.profile is not None else 0
    return PrunedModelStatus(
        observed_generation=owner.generation,
        conditions=dated(verdicts, situation.status.conditions, generation=owner.generation, now=now),
        replicas=counts.replicas,
        ready_replicas=counts.ready,
        updated_replicas=counts.updated,
        selector=selector_text(owner.name),
        workers_summary=f"{counts.ready}/{0 if spec.suspend or passed is not None else spec.workers.replicas}",
        patterns_summary=f"{profiled}/{tasks}" if tasks else "",
        reason=verdicts[ConditionType.READY].reason.value,
        endpoints=_endpoints(situation),
        budget=spec.budget,
        serving_model_id=serving_model_id(situation),
        resolved=resolved,
        progress=Progress(
            pack=situation.pack.state.phase,
            profiled=profiled,
            tasks=tasks,
            patterns=situation.patterns.state.phase if situation.patterns is not None else "",
        ),
        preload=preload,
        handed_over=passed,
        last_failure=_last_failure(situation, found, now),
    )


def preload_status(situation: Situation, found: Sequence[WorkerPreload] | None) -> PreloadStatus | None:
    """``found`` None: nobody was asked now, so what was last said stays, as long as there are workers."""
    spec = situation.inputs.spec
    wanted = spec.patterns.preload
    if not wanted or spec.suspend or worker_counts(situation.deployment).wanted == 0:
        return None
    if found is None:
        return situation.status.preload
    answers = [worker for worker in found if worker.has_answered]
    done = [task for task in wanted if answers and all(task in worker.done for worker in answers)]
    # A worker that has not read the present list yet has nothing to say about it.
    told = [worker.problem for worker in found if not worker.has_answered or set(worker.wanted) == set(wanted)]
    return PreloadStatus(
        tasks=len(wanted),
        resident=len(done),
        workers=len(answers),
        message=max(told, default="")[:MESSAGE_MAX],
    )


def conflict_message(holder: str) -> str:
    """What a release says that watches what the release in the namespace ``holder`` serves."""
    return (
        f"the release in namespace {holder} serves this namespace, and another one that watches it too leaves it "
        "alone; let only one release watch it"
    )


def conflict_document(model: Json, message: str, now: str) -> Json:
    """The part of the status that such a release owns; nothing where ``message`` is empty."""
    verdict = Verdict("True", Reason.HELD_BY_OTHER_RELEASE, message)
    generation = int(model["metadata"].get("generation", 0))
    found = dated({ConditionType.RELEASE_CONFLICT: verdict}, (), generation=generation, now=now) if message else []
    said = [condition.model_dump(mode="json", by_alias=True) for condition in found]
    return {**_part_of(model), "status": {"conditions": said} if said else {}}


def status_document(model: Json, status: PrunedModelStatus) -> Json:
    """The status as it is applied, to exactly this object."""
    return {**_part_of(model), "status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _part_of(model: Json) -> Json:
    metadata = {name: model["metadata"][name] for name in ("name", "namespace", "uid")}
    return {"apiVersion": model["apiVersion"], "kind": model["kind"], "metadata": metadata}


def _endpoints(situation: Situation) -> Endpoints:
    inputs = situation.inputs
    gateway = inputs.release.gateway
    return Endpoints(
        grpc=grpc_endpoint(inputs), gateway="" if gateway is None else gateway.url, served_name=inputs.served_name
    )


def _last_failure(situation: Situation, found: Sequence[Trouble], now: str) -> LastFailure | None:
    """The latest failure seen; it stays after the cause is mended."""
    before = situation.status.last_failure
    candidates = [_of_trouble(trouble, now) for trouble in found if trouble.exit_code is not None]
    jobs = (situation.pack, situation.profile, situation.patterns)
    candidates += [_of_job(job, now) for job in jobs if job is not None and job.state.result.get("pod")]
    failures = [failure for failure in (*candidates, before) if failure is not None]
    return max(failures, key=lambda failure: failure.time, default=None)


def _of_trouble(trouble: Trouble, now: str) -> LastFailure:
    return LastFailure(
        pod=trouble.pod,
        reason=trouble.code or trouble.reason.value,
        message=trouble.message,
        exit_code=trouble.exit_code,
        time=trouble.time or now,
    )


def _of_job(job: PlannedJob, now: str) -> LastFailure:
    result = job.state.result
    exit_code = result.get("exitCode")
    return LastFailure(
        pod=str(result["pod"]),
        reason=str(result.get("reason") or "Failed"),
        message=" ".join(str(result.get("message", "")).split())[:1024],
        exit_code=exit_code if isinstance(exit_code, int) else None,
        time=str(result.get("time") or now),
    )
