"""What stands around workers and Jobs, as whole values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from premoe_operator import children
from premoe_operator.kube.objects import Json
from support.pruned_models import FULL, SMALLEST, changed, inputs_of

WORKERS = {
    "app.kubernetes.io/name": "premoe",
    "app.kubernetes.io/component": "worker",
    "premoe.dev/model": "mixtral",
}


def namespaced(namespace: str, **labels: str) -> Json:
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return {"namespaceSelector": selector, "podSelector": {"matchLabels": labels} if labels else {}}


def tcp(*ports: int) -> list[Json]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


DNS = {
    "to": [namespaced("kube-system", **{"k8s-app": "kube-dns"})],
    "ports": [{"port": 53, "protocol": "UDP"}, *tcp(53)],
}
STORE = {"to": [namespaced("premoe", app="store")], "ports": tcp(50051, 50055)}
RETRIEVAL = {"to": [namespaced("premoe", app="retrieval")], "ports": tcp(50051)}
CALLERS: Json = {
    "from": [namespaced("premoe", app="gateway"), namespaced("premoe", app="operator")],
    "ports": tcp(50051),
}
ADMIN: Json = {"from": [namespaced("premoe", app="operator")], "ports": tcp(50052)}
OWN = {"ports": tcp(7777)}
"""A rule that the release's values give."""


def rules(policy: Json | None, direction: str) -> list[Json]:
    assert policy is not None
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    found = policy["spec"].get(direction, [])
    assert isinstance(found, list)
    assert found or direction not in policy["spec"]
    return found


def test_surroundings_come_policies_first() -> None:
    kinds = [(child["kind"], child["metadata"]["name"]) for child in children.surroundings(inputs_of(FULL))]
    assert kinds == [
        ("NetworkPolicy", "mixtral-worker"),
        ("NetworkPolicy", "mixtral-jobs"),
        ("ServiceAccount", "mixtral-worker"),
        ("ServiceAccount", "mixtral-jobs"),
        ("ServiceAccount", "mixtral-pack"),
        ("Certificate", "mixtral-worker"),
        ("ConfigMap", "mixtral-residency"),
        ("ConfigMap", "mixtral-tasks"),
        ("Service", "mixtral-worker"),
        ("PodDisruptionBudget", "mixtral-worker"),
    ]


def test_the_smallest_spec_asks_for_no_certificate_and_no_tasks() -> None:
    kinds = {child["metadata"]["name"] for child in children.surroundings(inputs_of(SMALLEST))}
    assert kinds == {"mixtral-worker", "mixtral-jobs", "mixtral-residency"}


def test_the_service_is_headless() -> None:
    assert children.worker_service(inputs_of(SMALLEST))["spec"] == {
        "clusterIP": "None",
        "selector": WORKERS,
        "ports": [
            {"name": "grpc", "port": 50051, "targetPort": "grpc", "protocol": "TCP", "appProtocol": "grpc"},
            {"name": "admin", "port": 50052, "targetPort": "admin", "protocol": "TCP", "appProtocol": "grpc"},
        ],
    }
    assert children.grpc_endpoint(inputs_of(SMALLEST)) == "dns:///mixtral-worker.models.svc:50051"


def test_the_selector_as_text() -> None:
    assert children.worker_selector("mixtral") == WORKERS
    assert children.selector_text("mixtral") == (
        "app.kubernetes.io/component=worker,app.kubernetes.io/name=premoe,premoe.dev/model=mixtral"
    )


def test_the_disruption_budget_lets_broken_workers_go() -> None:
    assert children.disruption_budget(inputs_of(SMALLEST))["spec"] == {
        "maxUnavailable": 1,
        "selector": {"matchLabels": WORKERS},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }


def test_the_residency_file() -> None:
    data = children.residency_config(inputs_of(FULL))["data"]
    assert {name: json.loads(text) for name, text in data.items()} == {"residency.json": {"preload": ["maths"]}}
    assert children.residency_config(inputs_of(SMALLEST))["data"] == {"residency.json": '{"preload": []}'}


def test_the_tasks_file_keeps_the_order_of_indexes() -> None:
    config = children.tasks_config(inputs_of(FULL))
    assert config is not None
    assert json.loads(config["data"]["tasks.json"]) == [
        {"name": "maths", "data": "/etc/premoe/calibration/maths/data.jsonl", "samples": 100},
        {"name": "code", "data": "s3://data/code.jsonl"},
    ]


def test_workers_are_called_by_gateway_and_operator_only_and_call_what_they_need() -> None:
    policy = children.network_policy(inputs_of(SMALLEST))
    assert policy is not None
    assert policy["spec"] == {
        "podSelector": {"matchLabels": WORKERS},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [CALLERS, ADMIN],
        "egress": [DNS, STORE, RETRIEVAL],
    }


def test_peers_are_named_by_namespace_and_labels() -> None:
    peers = [{"podLabels": {"app": "client"}}, {"namespaceLabels": {"team": "search"}}]
    policy = children.network_policy(inputs_of(changed(SMALLEST, {"access.peers": peers})))
    assert rules(policy, "ingress")[0] == {
        "from": [
            *CALLERS["from"],
            {"podSelector": {"matchLabels": {"app": "client"}}},
            {"podSelector": {}, "namespaceSelector": {"matchLabels": {"team": "search"}}},
        ],
        "ports": tcp(50051),
    }


@pytest.mark.parametrize("peers", [[], [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]])
def test_metrics_are_read_by_whom_the_release_names_or_by_everybody(peers: list[dict[str, Any]]) -> None:
    policy = children.network_policy(inputs_of(SMALLEST, release={"metrics": {"enabled": True, "peers": peers}}))
    assert rules(policy, "ingress")[-1] == {"from": peers or [{"namespaceSelector": {}}], "ports": tcp(50054)}


def test_only_the_operator_reaches_the_admin_port() -> None:
    policy = children.network_policy(inputs_of(SMALLEST, release={"operator": None}))
    assert [rule["ports"] for rule in rules(policy, "ingress")] == [tcp(50051)]


def test_without_any_caller_nobody_is_let_in() -> None:
    policy = children.network_policy(inputs_of(SMALLEST, release={"gateway": None, "operator": None}))
    assert rules(policy, "ingress") == []


def test_own_services_are_reached_in_their_namespace() -> None:
    spec = changed(SMALLEST, {"expertStoreRef": {"name": "store", "port": 7001}})
    policy = children.network_policy(inputs_of(spec))
    assert rules(policy, "egress")[1] == {"to": [namespaced("models")], "ports": tcp(7001, 50055)}


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ({"workerRedis": {"secretName": "redis"}}, [{"ports": tcp(6379)}]),
        ({"workerRedis": {"secretName": "redis"}, "egress": {"redis": [OWN]}}, [OWN]),
        ({"workerRedis": {"key": "address"}, "egress": {"redis": [OWN]}}, []),
        ({"workerObjectStore": {"read": True}}, [{"ports": tcp(443)}]),
        ({"workerObjectStore": {"read": True}, "egress": {"s3": [OWN], "identity": [ADMIN]}}, [OWN, ADMIN]),
        ({"workerObjectStore": {"secretName": "s3"}, "egress": {"s3": [OWN], "identity": [ADMIN]}}, []),
    ],
)
def test_workers_reach_redis_and_object_storage_where_they_read_them(release: Json, expected: list[Json]) -> None:
    inputs = inputs_of(SMALLEST, release=release)
    assert rules(children.network_policy(inputs), "egress") == [DNS, STORE, RETRIEVAL, *expected]


@pytest.mark.parametrize(
    ("own", "release", "egress", "expected"),
    [
        ("", {}, {}, []),
        ("", {"endpoint": "http://collector:4317"}, {}, [{"ports": tcp(4317)}]),
        ("", {"endpoint": "https://collector/v1"}, {}, [{"ports": tcp(443)}]),
        ("", {"endpoint": "http://collector"}, {"otlp": [OWN]}, [OWN]),
        ("http://own:9999", {"endpoint": "http://collector"}, {"otlp": [OWN]}, [{"ports": tcp(9999)}]),
    ],
)
def test_the_trace_collector_is_reached(own: str, release: Json, egress: Json, expected: list[Json]) -> None:
    spec = changed(SMALLEST, {"tracing.endpoint": own})
    inputs = inputs_of(spec, release={"tracing": release, "egress": egress})
    assert rules(children.network_policy(inputs), "egress")[3:] == expected
    assert rules(children.jobs_network_policy(inputs), "egress")[2:] == expected


@pytest.mark.parametrize(
    ("uri", "egress", "expected"),
    [
        ("s3://models/tiny", {}, [DNS, {"ports": tcp(443)}]),
        ("hf://org/name", {}, [DNS, {"ports": tcp(443)}]),
        ("hf://org/name", {"s3": [STORE]}, [DNS, STORE, {"ports": tcp(443)}]),
        ("hf://org/name", {"s3": [STORE], "hub": [OWN], "dns": []}, [STORE, OWN]),
        ("pvc://claim/folder", {"s3": [STORE], "hub": [OWN]}, [DNS, STORE]),
        ("s3://models/tiny", {"s3": [STORE], "identity": [OWN]}, [DNS, STORE, OWN]),
    ],
)
def test_jobs_reach_object_storage_and_the_hub(uri: str, egress: dict[str, Any], expected: list[Json]) -> None:
    revision = "0" * 40 if uri.startswith("hf") else None
    inputs = inputs_of(changed(SMALLEST, {"model.uri": uri, "model.revision": revision}), release={"egress": egress})
    policy = children.jobs_network_policy(inputs)
    assert rules(policy, "egress") == expected
    assert rules(policy, "ingress") == []


def test_the_jobs_policy_selects_jobs_and_no_worker() -> None:
    policy = children.jobs_network_policy(inputs_of(SMALLEST))
    assert policy is not None
    selector = policy["spec"]["podSelector"]
    (expression,) = selector["matchExpressions"]
    assert selector["matchLabels"] == {"app.kubernetes.io/name": "premoe", "premoe.dev/model": "mixtral"}
    assert (expression["operator"], expression["values"]) == ("In", ["pack", "profile", "patterns"])


def test_no_policy_where_none_is_wanted() -> None:
    inputs = inputs_of(changed(SMALLEST, {"access.networkPolicy": "None"}))
    assert children.network_policy(inputs) is None
    assert children.jobs_network_policy(inputs) is None


def test_the_certificate_names_the_service_each_worker_and_the_loopback() -> None:
    certificate = children.certificate(inputs_of(FULL, release={"tls": {"serverName": "premoe.internal"}}))
    assert certificate is not None
    assert certificate["spec"] == {
        "secretName": "mixtral-worker-tls",
        "duration": "2160h",
        "renewBefore": "720h",
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "usages": ["digital signature", "server auth", "client auth"],
        "dnsNames": [
            "mixtral-worker.models.svc",
            "*.mixtral-worker.models.svc",
            "mixtral-worker.models.svc.cluster.local",
            "localhost",
            "premoe.internal",
        ],
        "ipAddresses": ["127.0.0.1", "::1"],
        "issuerRef": {"name": "own", "kind": "ClusterIssuer", "group": "issuers.test"},
    }


def test_the_certificate_carries_the_role_of_a_worker_in_the_release() -> None:
    certificate = children.certificate(inputs_of(FULL, release={"tls": {"release": "premoe.serving"}}))
    assert certificate is not None
    # Services of before there were tenants know the first alone.
    assert certificate["spec"]["uris"] == ["premoe://premoe.serving/worker", "premoe://premoe.serving/worker/models"]


def test_the_certificate_lives_as_long_as_the_release_says_and_names_its_cluster() -> None:
    release = {"clusterDomain": "cluster.test", "tls": {"duration": "24h", "renewBefore": "8h30m"}}
    certificate = children.certificate(inputs_of(FULL, release=release))
    assert certificate is not None
    spec = certificate["spec"]
    assert (spec["duration"], spec["renewBefore"]) == ("24h", "8h30m")
    assert "mixtral-worker.models.svc.cluster.test" in spec["dnsNames"]
