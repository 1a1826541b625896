"""Every leaf of the spec has an effect: another value there changes a child. No leaf changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from premoe_operator import children
from premoe_operator.api.names import LABEL_SPEC_HASH
from premoe_operator.api.resources import PrunedModelSpec
from support.pruned_models import COMMIT, FULL, MODEL_ID, Document, changed, children_of, inputs_of, leaves

HF = {"model.uri": "hf://org/name", "model.revision": COMMIT}
NUMBERS = {"budget": None, "experts": {"active": 2, "kept": 4}}
CLAIM = {"jobs.pack.resources.claims": [{"name": "nic", "template": "nic"}]}
SECRET = {"access.tls.issuerRef": None, "access.tls.secretName": "own"}

Changes = dict[str, Any]


def named_account(of: str) -> Changes:
    return {f"{of}.serviceAccountAnnotations": None, f"{of}.serviceAccountName": "own"}


LEAVES: dict[str, tuple[Changes, Changes]] = {
    "model.uri": ({}, {"model.uri": "hf://org/other"}),
    "model.revision": (HF, {"model.revision": COMMIT[::-1]}),
    "model.modelId": ({}, {"model.modelId": MODEL_ID[:-1] + "0"}),
    "model.servedName": ({}, {"model.servedName": "other"}),
    "model.tokenSecretRef.name": ({}, {"model.tokenSecretRef.name": "other"}),
    "model.tokenSecretRef.key": ({}, {"model.tokenSecretRef.key": "other"}),
    "budget": ({}, {"budget": "3/5"}),
    "experts.active": (NUMBERS, {"experts.active": 3}),
    "experts.kept": (NUMBERS, {"experts.kept": 5}),
    "allocation": ({}, {"allocation": "Shared"}),
    "patterns.tasks[].name": ({}, {"patterns.tasks.1.name": "prose"}),
    "patterns.tasks[].calibration.configMap.name": ({}, {"patterns.tasks.0.calibration.configMap.name": "other"}),
    "patterns.tasks[].calibration.configMap.key": ({}, {"patterns.tasks.0.calibration.configMap.key": "other"}),
    "patterns.tasks[].calibration.uri": ({}, {"patterns.tasks.1.calibration.uri": "s3://data/other"}),
    "patterns.tasks[].samples": ({}, {"patterns.tasks.0.samples": 7}),
    "patterns.metric": ({}, {"patterns.metric": "TCESS"}),
    "patterns.answers": ({}, {"patterns.answers": "Given"}),
    "patterns.generalistBudget": ({}, {"patterns.generalistBudget": "1/2"}),
    "patterns.onUnknown": ({}, {"patterns.onUnknown": "Full"}),
    "patterns.preload": ({}, {"patterns.preload": ["code"]}),
    "patterns.deny": ({}, {"patterns.deny": ["code"]}),
    "engine.name": ({}, {"engine.name": "vllm"}),
    "engine.arguments": ({"engine.name": "vllm"}, {"engine.arguments": {"enforce_eager": False}}),
    "engine.image": ({}, {"engine.image": "registry.test/premoe/own:2"}),
    "engine.device": ({}, {"engine.device": "cuda:1"}),
    "engine.threads": ({}, {"engine.threads": 4}),
    "engine.slots": ({}, {"engine.slots": 10}),
    "engine.spare": ({}, {"engine.spare": 2}),
    "engine.maxSequences": ({}, {"engine.maxSequences": 5}),
    "engine.contextLength": ({}, {"engine.contextLength": 4096}),
    "engine.maxTokens": ({}, {"engine.maxTokens": 65}),
    "engine.hostMemory": ({}, {"engine.hostMemory": "5Gi"}),
    "engine.queueLimit": ({}, {"engine.queueLimit": 17}),
    "workers.replicas": ({}, {"workers.replicas": 3}),
    "workers.resources.requests": ({}, {"workers.resources.requests": {"cpu": "1"}}),
    "workers.resources.limits": ({}, {"workers.resources.limits": {"memory": "9Gi"}}),
    "workers.resources.claims[].name": ({}, {"workers.resources.claims.0.name": "other"}),
    "workers.resources.claims[].template": ({}, {"workers.resources.claims.0.template": "other"}),
    "workers.placement.spread": ({}, {"workers.placement.spread": "None"}),
    "workers.placement.whenUnsatisfiable": ({}, {"workers.placement.whenUnsatisfiable": "ScheduleAnyway"}),
    "workers.rollout.type": ({}, {"workers.rollout.type": "Recreate"}),
    "workers.rollout.progressDeadlineSeconds": ({}, {"workers.rollout.progressDeadlineSeconds": 901}),
    "workers.rollout.revision": ({}, {"workers.rollout.revision": "two"}),
    "workers.startupTimeoutSeconds": ({}, {"workers.startupTimeoutSeconds": 310}),
    "workers.drainTimeoutSeconds": ({}, {"workers.drainTimeoutSeconds": 31}),
    "workers.serviceAccountName": ({}, named_account("workers")),
    "workers.serviceAccountAnnotations": ({}, {"workers.serviceAccountAnnotations": {"cloud.test/role": "other"}}),
    "workers.labels": ({}, {"workers.labels": {"team": "other"}}),
    "workers.annotations": ({}, {"workers.annotations": {"note.test/owner": "other"}}),
    "workers.scratchSize": ({}, {"workers.scratchSize": "2Gi"}),
    "workers.sharedMemorySize": ({}, {"workers.sharedMemorySize": "1Gi"}),
    "jobs.resources.requests": ({}, {"jobs.resources.requests": {"cpu": "2"}}),
    "jobs.resources.limits": ({}, {"jobs.resources.limits": {"memory": "5Gi"}}),
    "jobs.resources.claims[].name": ({}, {"jobs.resources.claims.0.name": "other"}),
    "jobs.resources.claims[].template": ({}, {"jobs.resources.claims.0.template": "other"}),
    "jobs.serviceAccountName": ({}, named_account("jobs")),
    "jobs.serviceAccountAnnotations": ({}, {"jobs.serviceAccountAnnotations": {"cloud.test/role": "other"}}),
    "jobs.storeSecretRef.name": ({}, {"jobs.storeSecretRef.name": "other"}),
    "jobs.pack.resources.requests": ({}, {"jobs.pack.resources.requests": {"cpu": "2"}}),
    "jobs.pack.resources.limits": ({}, {"jobs.pack.resources.limits": {"memory": "5Gi"}}),
    "jobs.pack.resources.claims[].name": (CLAIM, {"jobs.pack.resources.claims.0.name": "other"}),
    "jobs.pack.resources.claims[].template": (CLAIM, {"jobs.pack.resources.claims.0.template": "other"}),
    "jobs.pack.serviceAccountName": ({}, named_account("jobs.pack")),
    "jobs.pack.serviceAccountAnnotations": ({}, {"jobs.pack.serviceAccountAnnotations": {"cloud.test/role": "other"}}),
    "jobs.parallelism": ({}, {"jobs.parallelism": 1}),
    "jobs.retries": ({}, {"jobs.retries": 2}),
    "jobs.timeoutSeconds": ({}, {"jobs.timeoutSeconds": 3601}),
    "jobs.scratchSize": ({}, {"jobs.scratchSize": "4Gi"}),
    "jobs.labels": ({}, {"jobs.labels": {"queue.test/name": "other"}}),
    "imagePullSecrets[].name": ({}, {"imagePullSecrets.0.name": "other"}),
    "expertStoreRef.name": ({}, {"expertStoreRef.name": "other"}),
    "expertStoreRef.namespace": ({}, {"expertStoreRef.namespace": None}),
    "expertStoreRef.port": ({}, {"expertStoreRef.port": 7003}),
    "retrievalRef.name": ({}, {"retrievalRef.name": "other"}),
    "retrievalRef.namespace": ({}, {"retrievalRef.namespace": None}),
    "retrievalRef.port": ({}, {"retrievalRef.port": 7003}),
    "access.networkPolicy": ({}, {"access.networkPolicy": "None"}),
    "access.peers[].namespaceLabels": ({}, {"access.peers.0.namespaceLabels": {"team": "other"}}),
    "access.peers[].podLabels": ({}, {"access.peers.0.podLabels": {"app": "other"}}),
    "access.tls.mode": (SECRET, {"access.tls.mode": "Disabled", "access.tls.secretName": None}),
    "access.tls.secretName": (SECRET, {"access.tls.secretName": "other"}),
    "access.tls.issuerRef.name": ({}, {"access.tls.issuerRef.name": "other"}),
    "access.tls.issuerRef.kind": ({}, {"access.tls.issuerRef.kind": "Issuer"}),
    "access.tls.issuerRef.group": ({}, {"access.tls.issuerRef.group": "cert-manager.io"}),
    "tracing.endpoint": ({}, {"tracing.endpoint": "http://other:4317"}),
    "tracing.sampleRatio": ({}, {"tracing.sampleRatio": "0.25"}),
    "podTemplate": ({}, {"podTemplate": {"spec": {"dnsPolicy": "Default"}}}),
    "suspend": ({}, {"suspend": True}),
}
"""For every leaf: what the full spec is changed to first, and the other value of the leaf."""

OTHER: dict[str, Any] = {
    "key": "other",
    "operator": "NotIn",
    "values": ["1", "2"],
    "value": "no",
    "effect": "NoExecute",
    "weight": 7,
    "matchLabels": {"app": "other"},
    "nodeSelector": {"pool": "other"},
    "topologyKey": "topology.kubernetes.io/zone",
    "namespaces": ["other"],
    "priorityClassName": "other",
    "runtimeClassName": "other",
}


def of_placement() -> dict[str, tuple[Changes, Changes]]:
    """Leaves of placements that the table does not have: there are many, and equal ones in every kind of pod."""
    found: dict[str, tuple[Changes, Changes]] = {}
    for leaf in leaves(PrunedModelSpec):
        if ".placement." in leaf and leaf not in LEAVES:
            place = leaf.replace("[]", ".0")
            toleration, last = "tolerations" in leaf, leaf.rpartition(".")[2]
            if toleration and last == "operator":
                found[leaf] = ({f"{place.rpartition('.')[0]}.value": None}, {place: "Exists"})
            else:
                found[leaf] = ({}, {place: OTHER[last]})
    return found


LEAVES |= of_placement()

NO_CHILD = {"model.takesOverFrom"}
"""A leaf about another PrunedModel (test_handover.py)."""


def based_on(leaf: str) -> tuple[Document, Document]:
    base, changes = LEAVES[leaf]
    before = changed(FULL, base)
    return before, changed(before, changes)


def test_the_table_has_every_leaf() -> None:
    found = list(leaves(PrunedModelSpec))
    assert len(found) == len(set(found))
    assert set(found) == set(LEAVES) | NO_CHILD


@pytest.mark.parametrize("leaf", LEAVES)
def test_another_value_changes_a_child(leaf: str) -> None:
    before, after = (children_of(inputs_of(spec)) for spec in based_on(leaf))
    assert before != after


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_spec_hash_follows_the_worker_template(leaf: str) -> None:
    """A change of the template always has another hash, and nothing else has, save the revision asked for."""
    before, after = (inputs_of(spec) for spec in based_on(leaf))
    templates = [children.worker_template(inputs) for inputs in (before, after)]
    for template in templates:
        del template["metadata"]["labels"][LABEL_SPEC_HASH]
    differ = templates[0] != templates[1]
    assert (children.spec_hash(before) != children.spec_hash(after)) == (differ or leaf == "workers.rollout.revision")


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_job_of_the_same_name_differs_only_where_kubernetes_lets_it(leaf: str) -> None:
    """Kubernetes refuses to change the template of a Job, so another template has another name, save for tracing:
    that alone is no reason to run a Job again."""
    for build in (children.pack_job, children.profile_job, children.patterns_job):
        before, after = (build(inputs_of(spec)) for spec in based_on(leaf))
        assert before is not None
        assert after is not None
        if before["metadata"]["name"] == after["metadata"]["name"]:
            assert changed_fields(before, after) <= {"suspend", "parallelism"} or leaf.startswith("tracing.")


def changed_fields(before: Document, after: Document) -> set[str]:
    return {name for name in before["spec"] if before["spec"][name] != after["spec"][name]}
