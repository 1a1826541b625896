"""The PrunedModel definition on a real API server: established, structural, defaulting, refusing, documented."""

from __future__ import annotations

import re
from typing import Any

import pytest
from crd import SCHEMA_VERSION
from crd_rules import ROOT_RULES, RULES
from premoe_operator.api.resources import parse_spec
from support.cluster_fixtures import control_plane, namespace
from support.control_plane import ControlPlane
from support.pruned_models import COMMIT, FULL, MODEL_ID, SMALLEST, Document, changed
from support.prunedmodel_definition import create, definition, models_path

__all__ = ["control_plane", "definition", "namespace"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("definition")]

DRY = "default"
"""Namespace of what is only tried: dry runs leave nothing behind, and a fresh namespace takes a second."""


def test_the_definition_is_established_and_structural(definition: Document) -> None:
    conditions = {each["type"]: each["status"] for each in definition["status"]["conditions"]}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    # The API server names what is not structural in a condition of this type.
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert definition["metadata"]["annotations"]["premoe.dev/schema"] == str(SCHEMA_VERSION)


def test_defaults_appear_and_mean_the_same_to_the_operator(control_plane: ControlPlane, namespace: str) -> None:
    stored = create(control_plane, namespace, SMALLEST).json()["spec"]
    assert stored["workers"]["replicas"] == 1
    assert stored["workers"]["rollout"] == {"type": "Surge", "progressDeadlineSeconds": 1800}
    assert stored["engine"]["name"] == "hf"
    assert parse_spec(stored) == parse_spec(SMALLEST)


def test_a_full_spec_is_stored_as_written(control_plane: ControlPlane, namespace: str) -> None:
    stored = create(control_plane, namespace, FULL).json()["spec"]
    assert stored["podTemplate"] == FULL["podTemplate"]
    assert parse_spec(stored) == parse_spec(FULL)


def test_unknown_fields_are_named_by_strict_clients_and_dropped_for_others(control_plane: ControlPlane) -> None:
    spec = changed(SMALLEST, {"workers.replica": 2})
    body = {"apiVersion": "premoe.dev/v1alpha1", "kind": "PrunedModel", "metadata": {"name": "typo"}, "spec": spec}
    strict = control_plane.request(
        "POST", models_path(DRY), json=body, params={"fieldValidation": "Strict", "dryRun": "All"}
    )
    assert strict.status_code == 400
    assert 'unknown field "spec.workers.replica"' in strict.json()["message"]
    assert "replica" not in create(control_plane, DRY, spec, dry_run=True).json()["spec"]["workers"]


GPU = {"limits": {"nvidia.com/gpu": "1"}}

HUB = {"uri": "hf://org/name", "revision": COMMIT}
NODES = "workers.placement.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"


def node_affinity(key: str, operator: str, *values: str) -> Document:
    requirement = {"key": key, "operator": operator, **({"values": list(values)} if values else {})}
    return {NODES: {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}}


def pod_affinity(term: Document) -> Document:
    return {"workers.placement.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution": [term]}


REFUSED: list[tuple[str, Document]] = [
    ("uri must be hf://org/name", {"model.uri": "https://somewhere/model"}),
    ("uri must be hf://org/name", {"model.uri": "hf://only-a-name", "model.revision": COMMIT}),
    ("uri must be hf://org/name", {"model.uri": "pvc://claim"}),
    ("uri must not lead upwards", {"model.uri": "pvc://claim/../etc"}),
    ("revision (a commit of 40 hexadecimal digits) is required", {"model.uri": "hf://org/name"}),
    ("revision (a commit of 40 hexadecimal digits) is required", {"model.revision": COMMIT}),
    ("give exactly one of configMap and uri", {"patterns.tasks": [{"name": "a", "calibration": {}}]}),
    (
        "give exactly one of configMap and uri",
        {"patterns.tasks": [{"name": "a", "calibration": {"uri": "s3://b/k", "configMap": {"name": "c", "key": "k"}}}]},
    ),
    (
        "generalist is the name of the pooled pattern",
        {"patterns.tasks": [{"name": "generalist", "calibration": {"uri": "s3://b/k"}}]},
    ),
    ("Duplicate value", {"patterns.tasks": [{"name": "a", "calibration": {"uri": "s3://b/k"}}] * 2}),
    (
        "preload may name only tasks",
        {"patterns.tasks": [{"name": "a", "calibration": {"uri": "s3://b/k"}}], "patterns.preload": ["b"]},
    ),
    (
        "deny may name only tasks",
        {"patterns.tasks": [{"name": "a", "calibration": {"uri": "s3://b/k"}}], "patterns.deny": ["b"]},
    ),
    (
        "and not all of them",
        {"patterns.tasks": [{"name": "a", "calibration": {"uri": "s3://b/k"}}], "patterns.deny": ["a"]},
    ),
    ("b must be at least a", {"budget": "5/4"}),
    ("kept must be at least active", {"budget": None, "experts": {"active": 5, "kept": 4}}),
    ("give exactly one of budget and experts", {"experts": {"active": 2, "kept": 4}}),
    ("give exactly one of budget and experts", {"budget": None}),
    ("b must be at least a", {"patterns.generalistBudget": "2/1"}),
    ("arguments are those of vLLM", {"engine.arguments": {"enforce_eager": False}}),
    ("arguments are those of vLLM", {"engine": {"name": "hf", "arguments": {}}}),
    ("slots must hold the experts that the budget keeps", {"engine.slots": 3}),
    (
        "slots must hold the experts that the budget keeps",
        {"budget": None, "experts": {"active": 2, "kept": 4}, "engine.slots": 3},
    ),
    (
        "slots must hold the experts that the generalist's budget keeps",
        {"engine.slots": 5, "patterns.generalistBudget": "2/6"},
    ),
    (
        "rollout.progressDeadlineSeconds must exceed",
        {"workers.startupTimeoutSeconds": 1740, "workers.drainTimeoutSeconds": 60},
    ),
    (
        "serviceAccountAnnotations are for the created ServiceAccount",
        {"workers.serviceAccountName": "own", "workers.serviceAccountAnnotations": {"a": "b"}},
    ),
    (
        "serviceAccountAnnotations are for the created ServiceAccount",
        {"jobs.serviceAccountName": "own", "jobs.serviceAccountAnnotations": {"a": "b"}},
    ),
    (
        "serviceAccountAnnotations are for the created ServiceAccount",
        {"jobs.pack.serviceAccountName": "own", "jobs.pack.serviceAccountAnnotations": {"a": "b"}},
    ),
    ("packing uses neither a GPU nor a claimed device", {"jobs.pack.resources": GPU}),
    (
        "packing uses neither a GPU nor a claimed device",
        {"jobs.pack.resources.claims": [{"name": "gpu", "template": "gpu"}]},
    ),
    ("takesOverFrom names another PrunedModel", {"model.takesOverFrom": "model", "model.servedName": "chat"}),
    ("takesOverFrom needs servedName", {"model.takesOverFrom": "other"}),
    ("takesOverFrom needs servedName", {"model.takesOverFrom": "other", "model.servedName": ""}),
    ("spec.model.takesOverFrom", {"model.takesOverFrom": "Not a name"}),
    ("tokenSecretRef is for checkpoints of the Hub", {"model.tokenSecretRef": {"name": "hub"}}),
    ("spec.model.tokenSecretRef.name", {"model": {**HUB, "tokenSecretRef": {"name": "Not a name"}}}),
    ("spec.model.tokenSecretRef.key", {"model": {**HUB, "tokenSecretRef": {"name": "hub", "key": "a/b"}}}),
    ("spec.model.tokenSecretRef.name: Required", {"model": {**HUB, "tokenSecretRef": {"key": "token"}}}),
    ("spec.jobs.storeSecretRef.name: Required", {"jobs.storeSecretRef": {}}),
    ("Duplicate value", {"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}),
    ("key must be a name", node_affinity("a//b", "Exists")),
    ("operators In and NotIn need values", node_affinity("a", "In")),
    ("operators In and NotIn need values", node_affinity("a", "Exists", "x")),
    ("operators In and NotIn need values", node_affinity("a", "Gt", "many")),
    ("operators In and NotIn need values", node_affinity("a", "Lt", "1", "2")),
    ('Unsupported value: "Near"', node_affinity("a", "Near", "x")),
    ("nodeSelectorTerms in body should have at least 1 items", {NODES: {"nodeSelectorTerms": []}}),
    ("topologyKey must be a name", pod_affinity({"topologyKey": "a//b"})),
    ("topologyKey: Required", pod_affinity({"labelSelector": {"matchLabels": {"app": "x"}}})),
    (
        "operators In and NotIn need values",
        pod_affinity({"topologyKey": "a", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
    ),
    ("every key must be a name", pod_affinity({"topologyKey": "a", "labelSelector": {"matchLabels": {"/": "x"}}})),
    ("every key must be a name", {"jobs.placement.nodeSelector": {"x" * 64: "x"}}),
    ("every key must be a name", {"jobs.serviceAccountAnnotations": {"-": "x"}}),
    ("every key must be a name", {"jobs.pack.serviceAccountAnnotations": {"-": "x"}}),
    ('Unsupported value: "Never"', {"workers.placement.whenUnsatisfiable": "Never"}),
    ("labels of premoe.dev/", {"workers.labels": {"premoe.dev/model": "x"}}),
    ("labels of premoe.dev/", {"workers.labels": {"app.kubernetes.io/name": "x"}}),
    ("labels of premoe.dev/", {"workers.labels": {"pod-template-hash": "x"}}),
    ("labels of premoe.dev/", {"jobs.labels": {"batch.kubernetes.io/job-name": "x"}}),
    ("every key must be a name", {"workers.labels": {"a b": "x"}}),
    ("every key must be a name", {"workers.annotations": {"/x": "x"}}),
    ("every key must be a name", {"workers.serviceAccountAnnotations": {"-": "x"}}),
    ("every key must be a name", {"jobs.labels": {"Upper.Domain/x": "x"}}),
    ("every key must be a name", {"workers.placement.nodeSelector": {"x" * 64: "x"}}),
    ("every key must be a name", {"access.peers": [{"podLabels": {"": "x"}}]}),
    ("every key must be a name", {"access.peers": [{"namespaceLabels": {"": "x"}}]}),
    ("annotations of kubernetes.io/", {"workers.annotations": {"kubernetes.io/config.mirror": "x"}}),
    (
        "annotations of kubernetes.io/",
        {"workers.annotations": {"container.apparmor.security.beta.kubernetes.io/premoe-worker": "unconfined"}},
    ),
    ("a resource is cpu, memory", {"workers.resources.limits": {"gpu": "1"}}),
    ("a resource is cpu, memory", {"jobs.resources.requests": {"requests.nvidia.com/gpu": "1"}}),
    ("a resource is cpu, memory", {"jobs.resources.requests": {"kubernetes.io/gpu": "1"}}),
    ("devices are counted in whole numbers", {"workers.resources.limits": {"nvidia.com/gpu": "500m"}}),
    (
        "devices are counted in whole numbers",
        {"workers.resources": {"limits": {"a.test/b": "1Ki"}, "requests": {"a.test/b": "1Ki"}}},
    ),
    (
        "a request must not exceed the limit",
        {"workers.resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "2047Mi"}}},
    ),
    ("a device that is requested needs a limit", {"workers.resources.requests": {"nvidia.com/gpu": "1"}}),
    ("engine.device is cpu, but workers.resources.limits", {"workers.resources": GPU, "engine.device": "cpu"}),
    (
        "engine.device is cpu, but workers.resources.limits",
        {"workers.resources.limits": {"nvidia.com/mig-1g.5gb": "1"}, "engine.device": "cpu"},
    ),
    ("engine.device is cuda, but workers.resources", {"engine.device": "cuda"}),
    ("engine.device is cuda, but workers.resources", {"engine.device": "cuda", "jobs.resources": GPU}),
    (
        "engine.device is cuda, but workers.resources",
        {"engine.device": "cuda:0", "workers.resources.limits": {"nvidia.com/gpu": "0"}},
    ),
    ("a pod uses one GPU", {"workers.resources.limits": {"nvidia.com/gpu": "4"}}),
    (
        "a pod uses one GPU, or several of one resource",
        {"workers.resources.limits": {"nvidia.com/gpu": "4", "amd.com/gpu": "4"}, "engine.name": "vllm"},
    ),
    ("a pod uses one GPU", {"jobs.resources.limits": {"nvidia.com/gpu": "10"}}),
    (
        "a toleration without a key needs operator Exists",
        {"workers.placement.tolerations": [{"effect": "NoSchedule"}]},
    ),
    ("operator Exists takes no value", {"workers.placement.tolerations": [{"operator": "Exists", "value": "x"}]}),
    ("key must be a name", {"workers.placement.tolerations": [{"key": "a//b"}]}),
    ("mode Mutual needs exactly one", {"access.tls": {"mode": "Mutual"}}),
    (
        "mode Mutual needs exactly one",
        {"access.tls": {"mode": "Mutual", "secretName": "a", "issuerRef": {"name": "b"}}},
    ),
    ("secretName and issuerRef are for mode Mutual", {"access.tls": {"secretName": "a"}}),
    ("secretName and issuerRef are for mode Mutual", {"access.tls": {"mode": "Disabled", "issuerRef": {"name": "b"}}}),
]


@pytest.mark.parametrize(("message", "changes"), REFUSED)
def test_a_rule_refuses_with_its_message(control_plane: ControlPlane, message: str, changes: Document) -> None:
    answer = create(control_plane, DRY, changed(SMALLEST, changes), dry_run=True)
    assert answer.status_code == 422
    assert message in answer.json()["message"]


@pytest.mark.parametrize("name", ["x" * 41, "1abc", "a.b"])
def test_a_name_that_children_cannot_carry_is_refused(control_plane: ControlPlane, name: str) -> None:
    answer = create(control_plane, DRY, SMALLEST, name=name, dry_run=True)
    assert answer.status_code == 422
    assert "the name must have at most 40 characters" in answer.json()["message"]


def test_the_longest_name_is_taken(control_plane: ControlPlane) -> None:
    assert create(control_plane, DRY, SMALLEST, name="x" * 40, dry_run=True).status_code == 201


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": {"uri": "hf://org/name", "revision": COMMIT[::-1]}}, 200),
        ({"model": {"uri": "s3://models/other", "revision": None}}, 200),
        ({"model": {"revision": None}}, 422),
        ({"model": {"uri": "s3://models/other"}}, 422),
    ],
)
def test_the_source_may_change_to_another_whole_one(
    control_plane: ControlPlane, namespace: str, changes: Document, code: int
) -> None:
    assert create(control_plane, namespace, changed(SMALLEST, {"model": HUB})).status_code == 201
    answer = control_plane.request(
        "PATCH",
        models_path(namespace, "model"),
        headers={"Content-Type": "application/merge-patch+json"},
        json={"spec": changes},
    )
    assert answer.status_code == code, answer.text


def test_every_rule_has_a_case_here() -> None:
    said = [*(message for message, _ in REFUSED), "the name must have at most 40 characters"]
    rules = [*ROOT_RULES, *(rule for rules in RULES.values() for rule in rules)]
    for rule in rules:
        assert any(message in rule.message for message in said), rule.message


def test_what_lies_within_the_rules_is_taken(control_plane: ControlPlane) -> None:
    for changes in (
        {"model": {"uri": "hf://Org/Some-Model_1.5", "revision": COMMIT, "modelId": MODEL_ID}},
        {"model.uri": "s3://bucket"},
        {"model.takesOverFrom": "other", "model.servedName": "chat"},
        {"model.takesOverFrom": "other", "model.servedName": "model"},
        {"model.takesOverFrom": ""},
        {"engine.slots": 4},
        {"engine": {"name": "vllm", "arguments": {"enforce_eager": False, "compilation_config": {"level": 1}}}},
        {"engine": {"name": "auto", "arguments": {"seed": 1}}},
        {"budget": None, "experts": {"active": 2, "kept": 4}, "engine.slots": 4},
        {"patterns.preload": ["stored-already"]},
        {"patterns.deny": ["stored-already"]},
        {"workers.startupTimeoutSeconds": 1739, "workers.drainTimeoutSeconds": 60},
        {"workers.resources": {"requests": {"cpu": "1000m"}, "limits": {"cpu": "1", "nvidia.com/gpu": "1"}}},
        {"workers.resources": GPU, "engine.device": "cuda"},
        {"workers.resources": {"claims": [{"name": "gpu", "template": "gpu"}]}, "engine.device": "cuda:0"},
        {"workers.resources": {"limits": {"rdma.test/hca": "4", "nvidia.com/gpu": "0"}}, "engine.device": "cpu"},
        {"workers.placement.tolerations": [{"operator": "Exists"}]},
        node_affinity("gpu.test/memory", "Gt", "40"),
        pod_affinity({"topologyKey": "kubernetes.io/hostname"}),
        {"model": {**HUB, "tokenSecretRef": {"name": "hub"}}, "imagePullSecrets": [{"name": "a"}, {"name": "b"}]},
        {"jobs.pack.resources": {"limits": {"memory": "64Gi", "nvidia.com/gpu": "0"}}},
        {"workers.rollout.progressDeadlineSeconds": 60},
        {"workers.annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
        {"access.tls": {"mode": "Mutual", "secretName": "own"}},
    ):
        answer = create(control_plane, DRY, changed(SMALLEST, changes), dry_run=True)
        assert answer.status_code == 201, answer.text


def schema_fields(schema: dict[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
    found = []
    for name, below in schema.get("properties", {}).items():
        found += [(*path, name), *schema_fields(below.get("items", below), (*path, name))]
    return found


def test_kubectl_explain_shows_every_field(control_plane: ControlPlane, definition: Document) -> None:
    (version,) = definition["spec"]["versions"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    for part in ("spec", "status"):
        text = control_plane.kubectl("explain", f"prunedmodel.{part}", "--recursive")
        shown = re.findall(r"^\s+(\w+)\t<", text, flags=re.MULTILINE)
        assert sorted(shown) == sorted(path[-1] for path in schema_fields(properties[part], ()))
    leaf = control_plane.kubectl("explain", "prunedmodel.spec.workers.rollout.type")
    assert "Surge: one new worker first (needs room for it)." in leaf
    assert "ENUM:" in leaf


STATUS = {
    "observedGeneration": 1,
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "AllReady",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 1,
        }
    ],
    "replicas": 2,
    "selector": "premoe.dev/model=model",
    "budget": "2/4",
    "reason": "AllReady",
    "workersSummary": "2/2",
    "patternsSummary": "8/8",
    "endpoints": {"grpc": "dns:///model-worker.models.svc:50051"},
}


def set_status(cluster: ControlPlane, namespace: str) -> None:
    cluster.request(
        "PATCH",
        f"{models_path(namespace, 'model')}/status",
        headers={"Content-Type": "application/merge-patch+json"},
        json={"status": STATUS},
    ).raise_for_status()


def test_every_column_shows_something(control_plane: ControlPlane, namespace: str) -> None:
    create(control_plane, namespace, SMALLEST).raise_for_status()
    set_status(control_plane, namespace)
    wide = control_plane.kubectl("get", "pmodel", "-n", namespace, "-o", "wide").splitlines()
    assert wide[0].split() == ["NAME", "READY", "REASON", "BUDGET", "WORKERS", "PATTERNS", "AGE", "MODEL", "ENDPOINT"]
    cells = wide[1].split()
    assert [*cells[:6], *cells[7:]] == [
        *("model", "True", "AllReady", "2/4", "2/2", "8/8"),
        *("s3://models/tiny", "dns:///model-worker.models.svc:50051"),
    ]
    assert "MODEL" not in control_plane.kubectl("get", "prunedmodels", "-n", namespace)
    assert control_plane.kubectl("get", "premoe", "-n", namespace, "-o", "name").split() == [
        "prunedmodel.premoe.dev/model"
    ]


def test_status_and_spec_are_written_apart(control_plane: ControlPlane, namespace: str) -> None:
    created = create(control_plane, namespace, SMALLEST).json()
    set_status(control_plane, namespace)
    found = control_plane.get(models_path(namespace, "model"))
    assert found is not None
    assert found["status"] == STATUS
    assert found["metadata"]["generation"] == created["metadata"]["generation"] == 1


def test_kubectl_scale_writes_the_replicas_and_an_autoscaler_finds_the_selector(
    control_plane: ControlPlane, namespace: str
) -> None:
    create(control_plane, namespace, SMALLEST).raise_for_status()
    set_status(control_plane, namespace)
    control_plane.kubectl("scale", "pmodel/model", "-n", namespace, "--replicas=3")
    scale = control_plane.get(f"{models_path(namespace, 'model')}/scale")
    assert scale is not None
    assert (scale["spec"], scale["status"]) == ({"replicas": 3}, {"replicas": 2, "selector": STATUS["selector"]})
    found = control_plane.get(models_path(namespace, "model"))
    assert found is not None
    assert found["spec"]["workers"]["replicas"] == 3
