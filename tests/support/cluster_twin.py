"""A small API server in memory: versions, uids, apply, garbage collection; and the controllers of Jobs and Deployments.

It knows no schema and no defaults. What the operator relies on is proved on a real one in tests/cluster.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from premoe_operator.api.names import FIELD_MANAGER
from premoe_operator.api.reasons import ConditionType
from premoe_operator.kube.cluster import ApiFailure, Listed
from premoe_operator.kube.kinds import CHILDREN, DEPLOYMENT, JOB, POD, PRUNED_MODEL, Kind, kind_of
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey, controller_of, key_of, uid_of

NAMESPACE = "team-a"
MODEL_ID = "blake3:" + "ab" * 32
PATTERN_SET = "blake3:" + "cd" * 32
RESULTS = {
    "pack": {"modelId": MODEL_ID},
    "profile": {"task": "any", "profile": "blake3:00"},
    "patterns": {"patternSet": PATTERN_SET},
}


class ClusterTwin:
    """Implements ``ports.Cluster``."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, Json] = {}
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)
        self.calls: list[str] = []

    async def list(
        self, kind: Kind, namespace: str | None, *, label_selector: str = "", field_selector: str = ""
    ) -> Listed:
        self.calls.append(f"list {kind.plural}")
        name, _, value = label_selector.partition("=")
        found = [
            copy.deepcopy(obj)
            for key, obj in self.objects.items()
            if key.kind is kind
            and namespace in (None, key.namespace)
            and (not name or (obj["metadata"].get("labels", {}).get(name, "") == value or not value))
            and (not name or name in obj["metadata"].get("labels", {}))
        ]
        return Listed(tuple(found), next(self._versions))

    async def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        self.calls.append(f"get {kind.plural}")
        return copy.deepcopy(self.objects.get(ObjectKey(kind, namespace, name)))

    async def create(self, obj: Json) -> Json:
        self.calls.append(f"create {kind_of(obj).plural}")
        if key_of(obj) in self.objects:
            raise ApiFailure(409, "AlreadyExists", f"{obj['metadata']['name']} already exists")
        return self.put(obj)

    async def apply(self, obj: Json) -> Json:
        self.calls.append(f"apply {kind_of(obj).plural}")
        found = self._found(key_of(obj))
        if uid_of(found) != uid_of(obj):
            raise ApiFailure(409, "Conflict", "the uid is another")
        return self._change(key_of(obj), _merged(found, obj))

    async def apply_status(self, obj: Json, *, manager: str = FIELD_MANAGER) -> Json:
        self.calls.append("apply_status")
        found = self._found(key_of(obj))
        if uid_of(found) != uid_of(obj):
            raise ApiFailure(409, "Conflict", "the uid is another")
        status = copy.deepcopy(obj["status"])
        said = {entry["type"]: entry for entry in found.get("status", {}).get("conditions", [])}
        conflict = said.pop(ConditionType.RELEASE_CONFLICT, None)
        if manager == FIELD_MANAGER:
            status["conditions"] = [*status.get("conditions", []), *([conflict] if conflict else [])]
        else:
            conditions = [*said.values(), *status.get("conditions", [])]
            status = {**found.get("status", {}), "conditions": conditions}
        return self._change(key_of(obj), {**found, "status": status})

    async def merge_patch(self, kind: Kind, namespace: str, name: str, patch: Json) -> Json:
        self.calls.append(f"patch {kind.plural}")
        key = ObjectKey(kind, namespace, name)
        found = self._found(key)
        if patch.get("metadata", {}).get("uid", uid_of(found)) != uid_of(found):
            raise ApiFailure(409, "Conflict", "the uid is another")
        return self._change(key, _merged(found, patch))

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        self.calls.append(f"delete {kind.plural}")
        found = self.objects.get(ObjectKey(kind, namespace, name))
        if found is not None and uid_of(found) == uid:
            self.remove(ObjectKey(kind, namespace, name))

    async def replace(self, obj: Json) -> Json:
        self.calls.append(f"update {kind_of(obj).plural}")
        found = self._found(key_of(obj))
        if found["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            raise ApiFailure(409, "Conflict", "the object has been modified")
        return self._change(key_of(obj), copy.deepcopy(obj))

    def put(self, obj: Json) -> Json:
        """Create an object as anybody might."""
        made = copy.deepcopy(obj)
        made["metadata"].update(
            uid=f"uid-{next(self._uids)}",
            resourceVersion=str(next(self._versions)),
            generation=1,
            creationTimestamp=f"2026-01-01T00:00:{next(self._uids) % 60:02d}Z",
        )
        self.objects[key_of(made)] = made
        return copy.deepcopy(made)

    def edit(self, key: ObjectKey, patch: Json) -> Json:
        """Merge patch as anybody might."""
        return self._change(key, _merged(self._found(key), patch))

    def remove(self, key: ObjectKey) -> None:
        """Delete an object and, as garbage collection does, what it controls."""
        gone = self.objects.pop(key)
        for child in [
            child for child in self.objects.values() if (controller_of(child) or {}).get("uid") == uid_of(gone)
        ]:
            if key_of(child) in self.objects:
                self.remove(key_of(child))

    def of_kind(self, kind: Kind) -> Sequence[Json]:
        return [obj for key, obj in self.objects.items() if key.kind is kind]

    def advance(self) -> None:
        """Let Jobs that are not suspended end well, and workers become ready."""
        for job in self.of_kind(JOB):
            if not job["spec"].get("suspend") and not job.get("status", {}).get("conditions"):
                self.finish(job)
        for deployment in self.of_kind(DEPLOYMENT):
            replicas = deployment["spec"]["replicas"]
            counts = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas"), replicas)
            status = {"observedGeneration": deployment["metadata"]["generation"], **counts}
            if deployment.get("status") != status:
                self._change(key_of(deployment), {**deployment, "status": status})

    def finish(self, job: Json, words: Json | None = None, exit_code: int = 0) -> None:
        """A pod of the Job ends with those words, and so does the Job."""
        component = job["metadata"]["labels"]["app.kubernetes.io/component"]
        message = json.dumps(RESULTS[component] if words is None else words)
        ended = {"exitCode": exit_code, "message": message, "finishedAt": "2026-01-01T01:00:00Z"}
        owner = {"controller": True, "uid": uid_of(job), "kind": "Job", "name": job["metadata"]["name"]}
        self.put(
            {
                "apiVersion": POD.api_version,
                "kind": POD.name,
                "metadata": {
                    "name": f"{job['metadata']['name']}-{next(self._uids)}",
                    "namespace": job["metadata"]["namespace"],
                    "labels": dict(job["metadata"]["labels"]),
                    "ownerReferences": [owner],
                },
                "spec": {},
                "status": {
                    "phase": "Succeeded" if exit_code == 0 else "Failed",
                    "containerStatuses": [{"name": "premoe-job", "state": {"terminated": ended}}],
                },
            }
        )
        kind = "Complete" if exit_code == 0 else "Failed"
        completions = job["spec"].get("completions")
        status: Json = {"conditions": [{"type": kind, "status": "True"}], "succeeded": completions or 1}
        if completions:
            status["completedIndexes"] = f"0-{completions - 1}" if completions > 1 else "0"
        self._change(key_of(job), {**job, "status": status})

    def children(self, model: ModelKey) -> Iterator[Json]:
        """Everything that the PrunedModel controls."""
        uid = uid_of(self.objects[ObjectKey(PRUNED_MODEL, *model)])
        for obj in self.objects.values():
            if (controller_of(obj) or {}).get("uid") == uid and kind_of(obj) in CHILDREN:
                yield obj

    def _found(self, key: ObjectKey) -> Json:
        if key not in self.objects:
            raise ApiFailure(404, "NotFound", f"{key.name} not found")
        return self.objects[key]

    def _change(self, key: ObjectKey, changed: Json) -> Json:
        """Store a new version; the generation grows with what is not metadata or status."""
        before = self.objects[key]
        if {**changed, "metadata": None} == {**before, "metadata": None}:
            same = {name: value for name, value in changed["metadata"].items() if name != "uid"}
            if same == {name: value for name, value in before["metadata"].items() if name != "uid"}:
                return copy.deepcopy(before)
        made = copy.deepcopy(changed)
        spec_changed = {**made, "metadata": 0, "status": 0} != {**before, "metadata": 0, "status": 0}
        generation = before["metadata"]["generation"] + spec_changed
        made["metadata"].update(resourceVersion=str(next(self._versions)), generation=generation)
        made["metadata"]["uid"] = before["metadata"]["uid"]
        self.objects[key] = made
        return copy.deepcopy(made)


def _merged(found: Any, patch: Any) -> Any:
    if not isinstance(found, Mapping) or not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(dict(found))
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name, {} if isinstance(value, Mapping) else None), value)
    return merged
