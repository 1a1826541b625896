"""How the children that are there differ from those that should be. Pure.

What is not ours is never written; what a deleted PrunedModel of the same name left is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from premoe_operator.api.names import ANNOTATION_APPLIED, ANNOTATION_OWNER, LABEL_COMPONENT
from premoe_operator.children import job_changes
from premoe_operator.decide.difference import difference
from premoe_operator.decide.jobs import job_state, result_of, result_patch
from premoe_operator.decide.observed import Observed
from premoe_operator.decide.situation import PlannedJob, Situation
from premoe_operator.kube.kinds import JOB, REVISION
from premoe_operator.kube.objects import Json, ObjectKey, annotation, is_deleting, key_of, ownership, stamped, uid_of

_NEVER_APPLIED = (JOB, REVISION)
"""Kinds whose contents the API does not let change; another content has another name."""

REVISIONS_KEPT = 3
"""ControllerRevisions of earlier specs that stay, so that going back to one restarts on the same template."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A merge patch of one object."""

    key: ObjectKey
    patch: Json


@dataclass(frozen=True, slots=True)
class Delete:
    """The removal of exactly the object with that uid."""

    key: ObjectKey
    uid: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What to write, and what stands in the way."""

    create: tuple[Json, ...] = ()
    apply: tuple[Json, ...] = ()
    """Each carries the uid of the object that it is meant for."""
    patch: tuple[Patch, ...] = ()
    delete: tuple[Delete, ...] = ()
    foreign: tuple[Json, ...] = ()
    leaving: tuple[Json, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.create or self.apply or self.patch or self.delete)


def changes(wanted: Sequence[Json], observed: Observed, situation: Situation, *, settled: bool, held: bool) -> Changes:
    """``settled``: workers run on the present template, so nothing needs the children of an earlier spec. ``held``:
    another PrunedModel's pattern set has to stay live.
    """
    create: list[Json] = []
    apply: list[Json] = []
    patch: list[Patch] = []
    foreign: list[Json] = []
    leaving: list[Json] = []
    for child in wanted:
        found = observed.children.get(key_of(child))
        if found is None:
            create.append(stamped(child))
        elif ownership(found, observed.model) == "foreign":
            foreign.append(found)
        elif ownership(found, observed.model) == "predecessor" or is_deleting(found):
            leaving.append(found)
        elif key_of(child).kind in _NEVER_APPLIED:
            patch += _metadata_patch(situation, child, found)
        else:
            target = stamped(child)
            if annotation(found, ANNOTATION_APPLIED) != annotation(target, ANNOTATION_APPLIED) or difference(
                target, found
            ):
                apply.append({**target, "metadata": {**target["metadata"], "uid": uid_of(found)}})
    results, lost = _results(situation, observed)
    superseded = _superseded(wanted, observed, situation, settled=settled, held=held)
    return Changes(
        tuple(create), tuple(apply), (*patch, *results), (*lost, *superseded), tuple(foreign), tuple(leaving)
    )


def _metadata_patch(situation: Situation, wanted: Json, found: Json) -> list[Patch]:
    """What may change on an object whose contents the API keeps: its metadata, and two fields of a Job."""
    target = {name: wanted["metadata"][name] for name in ("labels", "ownerReferences")}
    target["annotations"] = {ANNOTATION_OWNER: uid_of(situation.model)}
    patch: Json = {}
    if key_of(found).kind is JOB:
        patch = job_changes(situation.inputs, found) or {}
    metadata: Json = patch.get("metadata", {})
    if difference(target, found["metadata"]):
        annotations = {**metadata.get("annotations", {}), **target["annotations"]}
        metadata = {**metadata, **target, "annotations": annotations}
    if not patch and not metadata:
        return []
    return [Patch(key_of(found), {**patch, "metadata": {**metadata, "uid": uid_of(found)}})]


def _results(situation: Situation, observed: Observed) -> tuple[list[Patch], list[Delete]]:
    """Results of finished Jobs to keep; complete Jobs whose result is lost, which must run again."""
    kept: list[Patch] = []
    lost: list[Delete] = []
    jobs = (situation.pack, situation.profile, situation.patterns)
    for job in (job for job in jobs if job is not None and job.is_unread):
        if job.found is None or observed.pods is None:
            continue
        result = result_of(job.found, observed.pods)
        if result is not None:
            kept.append(Patch(key_of(job.found), result_patch(job.found, result)))
        else:
            lost.append(Delete(key_of(job.found), uid_of(job.found)))
    return kept, lost


def _superseded(
    wanted: Sequence[Json], observed: Observed, situation: Situation, *, settled: bool, held: bool
) -> list[Delete]:
    """Children of an earlier spec that nothing needs any more."""
    names = {key_of(child) for child in wanted}
    stale = [
        (key, child)
        for key, child in observed.children.items()
        if key not in names and ownership(child, observed.model) == "ours" and not is_deleting(child)
    ]
    jobs = [
        (key, child)
        for key, child in stale
        if key.kind is JOB and _is_replaced(child, wanted, situation, settled=settled, held=held)
    ]
    revisions = [(key, child) for key, child in stale if key.kind is REVISION]
    revisions.sort(key=lambda entry: str(entry[1]["metadata"].get("creationTimestamp", "")), reverse=True)
    others = [(key, child) for key, child in stale if key.kind not in (JOB, REVISION)]
    doomed = [*jobs, *revisions[REVISIONS_KEPT:], *(others if settled else ())]
    return [Delete(key, uid_of(child)) for key, child in doomed]


def _is_replaced(job: Json, wanted: Sequence[Json], situation: Situation, *, settled: bool, held: bool) -> bool:
    """Whether another Job does this one's work now, or nobody wants it done."""
    component = _component(job)
    if component != "pack" and not situation.inputs.spec.patterns.tasks:
        return True
    packed = component == "pack" and job_state(job).phase == "Complete"
    if packed and (not settled or situation.pack.state.phase != "Complete"):
        return False  # of other content, or another source, than is asked for now; it counts again when that is undone
    if component == "patterns" and held:
        return True  # what it made live no longer is: it has to run again when its turn comes
    return any(key_of(child).kind is JOB and _component(child) == component for child in wanted)


def _component(obj: Mapping[str, Json]) -> str:
    return str((obj["metadata"].get("labels") or {}).get(LABEL_COMPONENT, ""))


def planned_jobs(situation: Situation, *, with_tasks: bool, with_set: bool) -> list[PlannedJob]:
    """The Jobs whose turn it is: pack, then profile, then patterns if this PrunedModel's set may be live."""
    jobs = [situation.pack]
    if with_tasks and situation.profile is not None:
        jobs.append(situation.profile)
        if with_set and situation.patterns is not None and situation.profile.state.phase == "Complete":
            jobs.append(situation.patterns)
    return jobs
