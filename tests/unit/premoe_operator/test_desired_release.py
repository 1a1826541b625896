"""Every leaf of the release has an effect on some child, and none on which workers restart."""

from __future__ import annotations

from typing import Any

import pytest
from premoe_operator import children
from premoe_operator.api.release import Release
from support.pruned_models import COMMIT, FULL, RELEASE, SMALLEST, changed, children_of, inputs_of, leaves

RULE = {"ports": [{"port": 9, "protocol": "TCP"}]}
HUB = changed(SMALLEST, {"model": {"uri": "hf://org/name", "revision": COMMIT}, "engine.name": "vllm"})
ISSUED = {"mode": "CertManager", "issuerRef": {"name": "ca"}}
GIVEN = {"mode": "Secret", "secretName": "shared"}

LEAVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "workerImage": ({}, {"workerImage": "registry.test/next:2"}),
    "vllmImage": ({}, {"vllmImage": "registry.test/vllm:2"}),
    "imagePullPolicy": ({}, {"imagePullPolicy": "Always"}),
    "imagePullSecrets": ({}, {"imagePullSecrets": ["pull"]}),
    "storeUrl": ({}, {"storeUrl": "s3://other"}),
    "storeSecretName": ({}, {"storeSecretName": "other"}),
    "expertStore.name": ({}, {"expertStore.name": "other"}),
    "expertStore.namespace": ({}, {"expertStore.namespace": "other"}),
    "expertStore.port": ({}, {"expertStore.port": 7}),
    "expertStore.podLabels": ({}, {"expertStore.podLabels": {"app": "other"}}),
    "expertStore.blobsPort": ({}, {"expertStore.blobsPort": 7}),
    "retrieval.name": ({}, {"retrieval.name": "other"}),
    "retrieval.namespace": ({}, {"retrieval.namespace": "other"}),
    "retrieval.port": ({}, {"retrieval.port": 7}),
    "retrieval.podLabels": ({}, {"retrieval.podLabels": {"app": "other"}}),
    "gateway.namespace": ({}, {"gateway.namespace": "other"}),
    "gateway.podLabels": ({}, {"gateway.podLabels": {"app": "other"}}),
    "operator.namespace": ({}, {"operator.namespace": "other"}),
    "operator.podLabels": ({}, {"operator.podLabels": {"app": "other"}}),
    "tls.mode": ({"tls": ISSUED}, {"tls.mode": "Disabled"}),
    "tls.secretName": ({"tls": GIVEN}, {"tls.secretName": "other"}),
    "tls.issuerRef.name": ({"tls": ISSUED}, {"tls.issuerRef.name": "other"}),
    "tls.issuerRef.kind": ({"tls": ISSUED}, {"tls.issuerRef.kind": "ClusterIssuer"}),
    "tls.issuerRef.group": ({"tls": ISSUED}, {"tls.issuerRef.group": "issuers.test"}),
    "tls.serverName": ({"tls": GIVEN}, {"tls.serverName": "premoe.internal"}),
    "tls.release": ({"tls": ISSUED}, {"tls.release": "premoe.serving"}),
    "tls.duration": ({"tls": ISSUED}, {"tls.duration": "24h"}),
    "tls.renewBefore": ({"tls": ISSUED}, {"tls.renewBefore": "8h"}),
    "tls.checkRoles": ({"tls": {**GIVEN, "release": "premoe.serving"}}, {"tls.checkRoles": True}),
    "tracing.endpoint": ({}, {"tracing.endpoint": "http://collector:4317"}),
    "tracing.sampleRatio": ({"tracing.endpoint": "http://collector:4317"}, {"tracing.sampleRatio": "0.5"}),
    "metrics.enabled": ({}, {"metrics.enabled": True}),
    "metrics.annotations": ({"metrics.enabled": True}, {"metrics.annotations": True}),
    "metrics.peers": ({"metrics.enabled": True}, {"metrics.peers": [{"podSelector": {}}]}),
    "workerRedis.secretName": ({}, {"workerRedis.secretName": "redis"}),
    "workerRedis.key": ({"workerRedis.secretName": "redis"}, {"workerRedis.key": "address"}),
    "workerObjectStore.read": ({}, {"workerObjectStore.read": True}),
    "workerObjectStore.secretName": ({"workerObjectStore.read": True}, {"workerObjectStore.secretName": "s3"}),
    "drain.preStopSeconds": ({}, {"drain.preStopSeconds": 6}),
    "drain.delaySeconds": ({}, {"drain.delaySeconds": 6}),
    "clusterDomain": ({"tls": ISSUED}, {"clusterDomain": "cluster.test"}),
    "listenAddress": ({}, {"listenAddress": "::"}),
    "podSecurityContext": ({}, {"podSecurityContext": {"runAsNonRoot": True, "fsGroup": 1000}}),
    "extraEnv": ({}, {"extraEnv": [{"name": "A", "value": "b"}]}),
    "extraVolumes": ({}, {"extraVolumes": [{"name": "a", "emptyDir": {}}]}),
    "extraVolumeMounts": ({}, {"extraVolumeMounts": [{"name": "a", "mountPath": "/a"}]}),
    "egress.dns": ({}, {"egress.dns": [RULE]}),
    "egress.s3": ({}, {"egress.s3": [RULE]}),
    "egress.hub": ({}, {"egress.hub": [RULE]}),
    "egress.identity": ({}, {"egress.identity": [RULE]}),
    "egress.redis": ({"workerRedis.secretName": "redis"}, {"egress.redis": [RULE]}),
    "egress.otlp": ({"tracing.endpoint": "http://collector:4317"}, {"egress.otlp": [RULE]}),
}
"""For every leaf: what the release is changed to first, and the other value of the leaf."""

NO_CHILD = {"podTemplate.allowedPaths", "gateway.url"}
"""Leaves that refuse a spec, or are said in a status, in place of changing a child."""


def test_the_table_has_every_leaf() -> None:
    assert set(leaves(Release)) == set(LEAVES) | NO_CHILD


@pytest.mark.parametrize("leaf", LEAVES)
def test_another_value_changes_a_child_and_no_spec_hash(leaf: str) -> None:
    base, changes = LEAVES[leaf]
    before = changed(RELEASE, base)
    old, new = (inputs_of(HUB, release=release) for release in (before, changed(before, changes)))
    assert children_of(old) != children_of(new)
    assert children.spec_hash(old) == children.spec_hash(new)


def test_the_list_of_paths_refuses() -> None:
    assert children.pod_template_refusals(inputs_of(FULL)) == ()
    assert children.pod_template_refusals(inputs_of(FULL, release={"podTemplate": {"allowedPaths": []}}))
