"""A PrunedModel in the in-memory API, and what its status says."""

from __future__ import annotations

from typing import Any, TypeVar

from premoe_operator.api.release import Release
from premoe_operator.decide.observed import PackFacts
from premoe_operator.kube.kinds import PRUNED_MODEL
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey

from support.api_faults import FactsStore, FaultyCluster, Operator
from support.cluster_twin import MODEL_ID, NAMESPACE, ClusterTwin

Twin = TypeVar("Twin", bound=ClusterTwin)

KEY = ModelKey(NAMESPACE, "chat")
FACTS = PackFacts(MODEL_ID, "tiny-moe", layer_experts=(16,) * 4, top_k=4, blob_bytes=8192)
RELEASE = Release.model_validate(
    {
        "workerImage": "registry.example/premoe-worker:1",
        "storeUrl": "s3://packs/premoe",
        "expertStore": {"name": "store", "namespace": "premoe"},
        "retrieval": {"name": "retrieval", "namespace": "premoe"},
    }
)
TASKS = [
    {"name": name, "calibration": {"configMap": {"name": "prompts", "key": f"{name}.jsonl"}}} for name in ("sum", "c")
]


def model(name: str = "chat", **spec: Any) -> Json:
    source = {"uri": "hf://premoe/tiny-moe", "revision": "0" * 40}
    return {
        "apiVersion": PRUNED_MODEL.api_version,
        "kind": PRUNED_MODEL.name,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"model": source, "budget": "4/8", **spec},
    }


def twin_with(*objects: Json) -> ClusterTwin:
    return filled(ClusterTwin(), *objects)


def filled(twin: Twin, *objects: Json) -> Twin:
    """The twin with those objects and the calibration data that they name."""
    data = {f"{task['name']}.jsonl": "{}" for task in TASKS}
    twin.put(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prompts", "namespace": NAMESPACE}, "data": data}
    )
    for obj in objects:
        twin.put(obj)
    return twin


def operator(twin: ClusterTwin, faulty: FaultyCluster | None = None, release: Release = RELEASE) -> Operator:
    return Operator(twin, faulty or FaultyCluster(twin), FactsStore(FACTS), release, NAMESPACE)


def ready(twin: ClusterTwin, name: str = "chat") -> tuple[str, str]:
    conditions = twin.objects[ObjectKey(PRUNED_MODEL, NAMESPACE, name)]["status"]["conditions"]
    found = next(entry for entry in conditions if entry["type"] == "Ready")
    return found["status"], found["reason"]


def condition(twin: ClusterTwin, kind: str) -> Json:
    conditions = twin.objects[ObjectKey(PRUNED_MODEL, *KEY)]["status"]["conditions"]
    return next((entry for entry in conditions if entry["type"] == kind), {})
