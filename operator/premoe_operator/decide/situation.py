"""Where a PrunedModel stands, read from itself and its children: spec, builders' inputs, Jobs, Deployment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError

from premoe_operator.api.names import ANNOTATION_RETRY, LABEL_SPEC_HASH
from premoe_operator.api.reasons import ConditionType
from premoe_operator.api.release import Release
from premoe_operator.api.resources import parse_spec
from premoe_operator.api.status import PrunedModelStatus, Resolved
from premoe_operator.children import Inputs, Owner, certificate, model_of, pack_job, patterns_job, profile_job
from premoe_operator.children.services import expert_store, workers
from premoe_operator.children.transport import transport
from premoe_operator.decide.jobs import JobState, job_inputs, job_state
from premoe_operator.decide.observed import Needs, WorkersAsked
from premoe_operator.kube.kinds import DEPLOYMENT, JOB
from premoe_operator.kube.objects import Json, ObjectKey, annotation, is_deleting, key_of, ownership, uid_of
from premoe_runtime.formats.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A Job that is wanted, what is there of it, and how far it is."""

    component: str
    wanted: Json
    found: Json | None
    state: JobState

    @property
    def is_unread(self) -> bool:
        """Whether it has ended and its pods have not been read yet. Of a complete profile Job nothing is needed."""
        if self.component == "profile" and self.state.phase == "Complete":
            return False
        return self.state.is_finished and not self.state.is_read


@dataclass(frozen=True, slots=True)
class Situation:
    """A PrunedModel whose spec could be read."""

    model: Json
    inputs: Inputs
    """With ``model_id`` as soon as the pack Job of this spec has said it."""
    status: PrunedModelStatus
    """As last written; empty where it could not be read."""
    pack: PlannedJob
    profile: PlannedJob | None
    """``None`` without tasks, or before the pack's id is known."""
    patterns: PlannedJob | None
    deployment: Json | None
    """Only if it is ours."""

    @property
    def packed_id(self) -> str:
        return self.inputs.model_id

    @property
    def has_facts(self) -> bool:
        """Whether status holds the facts of this pack."""
        resolved = self.status.resolved
        return bool(resolved.layers) and resolved.model_id == self.packed_id


def read_situation(model: Json, children: Mapping[ObjectKey, Json], release: Release) -> Situation:
    """Raises InvalidInput in one line for a spec that the operator does not understand."""
    spec = parse_spec(model.get("spec") or {})
    metadata = model["metadata"]
    owner = Owner(metadata["name"], metadata["namespace"], uid_of(model), int(metadata.get("generation", 0)))
    status = read_status(model)
    inputs = Inputs(owner, spec, release, retry=annotation(model, ANNOTATION_RETRY))
    if status.resolved.source in (inputs.source, ""):  # before there was another one nobody said which
        inputs = replace(inputs, resolved_id=status.resolved.model_id)
    ours = {
        key: child
        for key, child in children.items()
        if ownership(child, model) in ("ours", "stripped") and not is_deleting(child)
    }
    pack = _planned("pack", pack_job(inputs), ours, expected_id=inputs.expected_id)
    if pack.state.phase == "Complete":
        inputs = replace(inputs, model_id=str(pack.state.result.get("modelId", "")))
    deployment = ours.get(ObjectKey(DEPLOYMENT, owner.namespace, inputs.worker_name))
    if deployment is not None:
        inputs = replace(inputs, hash_in_use=template_hash(deployment))
    profile = patterns = None
    if inputs.model_id:
        profile = _planned_or_none("profile", profile_job(inputs), ours)
        patterns = _planned_or_none("patterns", patterns_job(inputs), ours)
    return Situation(model, inputs, status, pack, profile, patterns, deployment)


def read_status(model: Json) -> PrunedModelStatus:
    """The status as last written by who serves the model; an empty one where somebody wrote something else."""
    try:
        status = PrunedModelStatus.model_validate(model.get("status") or {})
    except ValidationError:
        return PrunedModelStatus()
    own = [condition for condition in status.conditions if condition.type != ConditionType.RELEASE_CONFLICT]
    return status.model_copy(update={"conditions": own})


def conflict_said(model: Json) -> str:
    """What another release that watches the model too has said about it; empty: nothing."""
    conditions: list[Json] = (model.get("status") or {}).get("conditions") or []
    said = (entry for entry in conditions if entry.get("type") == ConditionType.RELEASE_CONFLICT)
    return next((str(entry.get("message", "")) for entry in said), "")


def needs(model: Json, children: Mapping[ObjectKey, Json], release: Release) -> Needs:
    """What to read before planning, beyond what the watches show."""
    try:
        situation = read_situation(model, children, release)
    except InvalidInput:
        return Needs()
    jobs = [job for job in (situation.pack, situation.profile, situation.patterns) if job is not None]
    unfinished = [job for job in jobs if job.found is not None and not job.state.is_finished]
    unread = [job for job in jobs if job.is_unread]
    suspended = situation.inputs.spec.suspend
    return Needs(
        pods=bool(unread) or (not suspended and (bool(unfinished) or workers_lag(situation.deployment))),
        events_of=tuple(job.found for job in unfinished if job.found is not None and _has_no_pods(job.found)),
        manifest_of="" if situation.has_facts else situation.packed_id,
        store_address=expert_store(situation.inputs).address,
        sources=_sources(situation),
        certificate=_certificate_key(situation),
        workers=_workers_to_ask(situation),
    )


def workers_lag(deployment: Json | None) -> bool:
    """Whether a Deployment has fewer ready workers of its present template than it wants."""
    if deployment is None:
        return False
    counts = worker_counts(deployment)
    return counts.ready < counts.wanted or counts.updated < counts.wanted or counts.replicas > counts.wanted


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """Numbers of worker pods."""

    wanted: int = 0
    replicas: int = 0
    ready: int = 0
    updated: int = 0
    is_observed: bool = True
    """Whether the counts are about the present template."""


def worker_counts(deployment: Json | None) -> WorkerCounts:
    if deployment is None:
        return WorkerCounts()
    status = deployment.get("status") or {}
    return WorkerCounts(
        wanted=int(deployment["spec"].get("replicas", 1)),
        replicas=int(status.get("replicas", 0)),
        ready=int(status.get("readyReplicas", 0)),
        updated=int(status.get("updatedReplicas", 0)),
        is_observed=int(status.get("observedGeneration", 0)) >= int(deployment["metadata"].get("generation", 0)),
    )


def template_hash(deployment: Json) -> str:
    """Spec hash of the template that a Deployment has."""
    labels: dict[str, str] = deployment["spec"]["template"].get("metadata", {}).get("labels") or {}
    return labels.get(LABEL_SPEC_HASH, "")


def serving_model_id(situation: Situation) -> str:
    """Id of the pack that workers serve. While they are replaced it is what they served before."""
    deployment = situation.deployment
    counts = worker_counts(deployment)
    if deployment is None or not counts.replicas:
        return ""
    if not counts.is_observed or counts.updated < counts.replicas or not counts.ready:
        return situation.status.serving_model_id
    return model_of(deployment["spec"]["template"])


def with_workers(situation: Situation, resolved: Resolved, *, is_handed_over: bool) -> Situation:
    """The situation once it is known what workers load, and whether they have to."""
    load = resolved.skeleton_bytes + resolved.resident_bytes
    return replace(situation, inputs=replace(situation.inputs, load_bytes=load, is_handed_over=is_handed_over))


def fresh_resolved(situation: Situation) -> Resolved:
    """What is resolved so far, without facts of another pack."""
    resolved = situation.status.resolved
    if not situation.packed_id:
        return resolved
    source = situation.inputs.source
    if resolved.model_id != situation.packed_id:
        return Resolved(
            model_id=situation.packed_id,
            source=source,
            image=resolved.image,
            spec_hash=resolved.spec_hash,
            template=resolved.template,
            startup_seconds=resolved.startup_seconds,
        )
    return resolved.model_copy(update={"source": source})


def _planned(component: str, wanted: Json, ours: Mapping[ObjectKey, Json], *, expected_id: str = "") -> PlannedJob:
    """The Job that is complete for these inputs, whichever try it was; else the present try."""
    tries = [job for key, job in ours.items() if key.kind is JOB and job_inputs(job) == job_inputs(wanted)]
    complete = [job for job in tries if job_state(job).phase == "Complete"]
    complete.sort(key=lambda job: (not job_state(job).is_read, job["metadata"]["name"]))
    for found in complete:
        state = job_state(found)
        if not (expected_id and state.is_read) or state.result.get("modelId") == expected_id:
            named = {**wanted, "metadata": {**wanted["metadata"], "name": found["metadata"]["name"]}}
            return PlannedJob(component, named, found, state)
    name = wanted["metadata"]["name"]
    found_now = next((job for job in tries if job["metadata"]["name"] == name and job not in complete), None)
    return PlannedJob(component, wanted, found_now, job_state(found_now))


def _planned_or_none(component: str, wanted: Json | None, ours: Mapping[ObjectKey, Json]) -> PlannedJob | None:
    return None if wanted is None else _planned(component, wanted, ours)


def _has_no_pods(job: Json) -> bool:
    status = job.get("status") or {}
    return not status.get("active") and not job["spec"].get("suspend")


def _workers_to_ask(situation: Situation) -> WorkersAsked | None:
    """Workers that have settled down and have a list of tasks to keep resident."""
    inputs, ready = situation.inputs, worker_counts(situation.deployment).ready
    tasks = tuple(inputs.spec.patterns.preload)
    if not tasks or not ready or inputs.spec.suspend or workers_lag(situation.deployment):
        return None
    service = workers(inputs)
    return WorkersAsked(service.host, service.port, transport(inputs) is not None, tasks, ready)


def _certificate_key(situation: Situation) -> ObjectKey | None:
    wanted = certificate(situation.inputs)
    return None if wanted is None else key_of(wanted)


def _sources(situation: Situation) -> tuple[tuple[str, str], ...]:
    if situation.profile is None or situation.profile.state.is_finished:
        return ()
    tasks = situation.inputs.spec.patterns.tasks
    maps = [task.calibration.config_map for task in tasks if task.calibration.config_map is not None]
    return tuple(dict.fromkeys((source.name, source.key) for source in maps))
