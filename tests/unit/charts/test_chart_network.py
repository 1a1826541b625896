"""NetworkPolicies of the chart: every pod is closed by default, and exactly the named ways are open."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import pytest
from support.charts import CHART, PROFILES, Object, of_kind, pod_templates, render, rendered, values_of
from support.network_policies import Allow, PodRules, matches, rules_of_pods

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

OUTSIDE = "203.0.113.7"
SERVING = "serving"
TEAM = "team-a"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_pod_is_closed_by_default(profile: str) -> None:
    policies = of_kind(rendered(profile), "NetworkPolicy")
    deny = next(policy["spec"] for policy in policies if policy["metadata"]["name"] == "premoe-default-deny")
    assert set(deny) == {"podSelector", "policyTypes"}
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    for name, pod in pod_templates(rendered(profile)):
        assert matches(deny["podSelector"], pod["metadata"]["labels"]), name


def test_a_model_with_the_name_of_the_release_is_not_selected() -> None:
    """Workers have policies of the operator's: the chart's default-deny would break them."""
    worker = worker_labels("worker", model="premoe")
    for policy in of_kind(rendered("full"), "NetworkPolicy"):
        assert not matches(policy["spec"]["podSelector"], worker), policy["metadata"]["name"]


ALLOWED = {
    ("gateway", "retrieval", 50051),
    ("gateway", "worker", 50051),
    ("operator", "expert-store", 50051),
    ("operator", "worker", 50051),
    ("operator", "worker", 50052),
    ("retrieval", "qdrant", 6333),
    ("test", "expert-store", 50051),
    ("test", "gateway", 50053),
    ("test", "gateway", 8000),
    ("test", "operator", 8080),
    ("test", "retrieval", 50051),
    ("test", "worker", 50051),
    ("worker", "expert-store", 50051),
    ("worker", "expert-store", 50055),
    ("worker", "retrieval", 50051),
}
"""(from, to, port) within one namespace; workers have policies of the operator's on their side."""


def test_exactly_these_ways_are_open_between_pods() -> None:
    values = values_of("plain") | {"qdrant": {"trial": {"enabled": True}}}
    world = World(render(CHART, values | CLOSED_GATEWAY))
    names = [*world.own, "worker", "pack", "profile", "patterns", "stranger"]
    open_ways = {
        (source, target, port)
        for source in names
        for target in names
        for port in (6333, 8000, 8080, 50051, 50052, 50053, 50054, 50055)
        if source != target and {source, target} & set(world.own) and world.reaches(source, target, port)
    }
    everybody_reads_metrics = {
        (name, target, port)
        for name in ("worker", "pack", "profile", "patterns", "stranger")
        for target, port in METRICS.items()
    }
    assert open_ways == ALLOWED | everybody_reads_metrics


def test_replicas_of_the_expert_store_read_blobs_from_each_other() -> None:
    world = World(rendered("plain"))
    assert world.reaches("expert-store", "expert-store", 50055)
    assert not world.reaches("expert-store", "expert-store", 50051)
    closed = World(render(CHART, values_of("plain") | {"expertStore": {"http": {"enabled": False}}}))
    assert not closed.reaches("expert-store", "expert-store", 50055)
    assert not closed.reaches("worker", "expert-store", 50055)


def test_a_release_lets_in_the_guests_that_it_names_and_nobody_else() -> None:
    """The other release is in a namespace of its own and serves models there."""
    there = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": SERVING}}}
    store = {"to": [there], "ports": [{"protocol": "TCP", "port": 50051}]}
    watched = {"watchNamespaces": [TEAM], "networkPolicy": {"egress": {"expertStores": [store]}}}
    guest = render(CHART, values_of("plain") | watched, release="other", namespace=TEAM)
    callers = ("operator", "worker", "gateway", "retrieval", "test")

    def open_ways(**values: Any) -> set[tuple[str, str]]:
        host = render(CHART, values_of("plain") | {"watchNamespaces": [SERVING]} | values)
        world = World(host, guest)
        targets = {
            "expert-store": ("expert-store", 50051),
            "blobs": ("expert-store", 50055),
            "retrieval": ("retrieval", 50051),
            "gateway": ("gateway", 50053),
            "operator": ("operator", 50051),
        }
        return {
            (caller, what)
            for caller in callers
            for what, (target, port) in targets.items()
            if world.reaches(f"team {caller}", target, port)
        }

    named = {"release": "other", "namespace": TEAM}
    served = {("operator", "expert-store"), ("worker", "expert-store"), ("worker", "retrieval"), ("worker", "blobs")}
    assert open_ways() == set()
    assert open_ways(guests=[named]) == served
    assert open_ways(guests=[{**named, "workerNamespaces": [TEAM]}]) == served
    assert open_ways(guests=[{**named, "workerNamespaces": [SERVING]}]) == {("operator", "expert-store")}
    assert open_ways(guests=[{**named, "release": "premoe"}]) == served - {("operator", "expert-store")}


def test_identity_agents_are_reached_by_those_that_use_a_cloud_role_and_only_where_allowed() -> None:
    agent = "169.254.170.23"
    rule = {"to": [{"ipBlock": {"cidr": f"{agent}/32"}}], "ports": [{"protocol": "TCP", "port": 80}]}
    closed, opened = (
        World(render(CHART, values_of("plain") | {"networkPolicy": {"egress": {"identity": rules}}}))
        for rules in ([], [rule])
    )
    for component in ("operator", "gateway", "retrieval", "expert-store"):
        assert not closed.leaves(component, agent, 80)
        assert opened.leaves(component, agent, 80) is (component in ("retrieval", "expert-store")), component


def test_metrics_are_read_by_whom_the_values_name() -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": TEAM}}}
    world = World(render(CHART, values_of("plain") | {"networkPolicy": {"ingress": {"metrics": [prometheus]}}}))
    for target, port in METRICS.items():
        assert world.reaches("team worker", target, port)
        assert not world.reaches("stranger", target, port)
        assert not world.enters(OUTSIDE, target, port)


METRICS = {"operator": 8080, "retrieval": 50054, "expert-store": 50054, "gateway": 50054}
CLOSED_GATEWAY = {"networkPolicy": {"ingress": {"gateway": [{"podSelector": {"matchLabels": {"role": "client"}}}]}}}


def test_everybody_reaches_the_gateway_until_callers_are_named() -> None:
    assert World(rendered("plain")).reaches("stranger", "gateway", 8000)
    assert World(rendered("plain")).enters(OUTSIDE, "gateway", 8000)
    named = World(render(CHART, values_of("plain") | CLOSED_GATEWAY))
    assert not named.reaches("stranger", "gateway", 8000)
    assert not named.enters(OUTSIDE, "gateway", 8000)


def test_what_leaves_the_cluster() -> None:
    world = World(rendered("secret"))  # Redis, a Qdrant server and traces
    ports = (53, 443, 4317, 4318, 6333, 6334, 6379, 6443, 80, 22)
    leaving = {name: {port for port in ports if world.leaves(name, OUTSIDE, port)} for name in world.own}
    traces = {4317, 4318}
    assert leaving == {
        "operator": {443, 6443} | traces,
        "retrieval": {443, 6333, 6334} | traces,
        "expert-store": {443, 6379} | traces,
        "gateway": traces,
        "test": traces,
    }


def test_names_are_resolved_by_every_pod() -> None:
    world = World(rendered("plain"))
    for name in world.own:
        assert world.leaves(name, world.address("dns"), 53, "udp"), name
        assert not world.leaves(name, OUTSIDE, 53, "udp"), name


def test_only_watched_namespaces_are_let_in() -> None:
    values = values_of("plain") | {"watchNamespaces": [TEAM]}
    world = World(render(CHART, values))
    assert world.reaches("team worker", "expert-store", 50051)
    assert not world.reaches("worker", "expert-store", 50051)
    assert not world.reaches("gateway", "worker", 50051)


def test_no_policies_when_they_are_off() -> None:
    values = values_of("plain") | {"networkPolicy": {"enabled": False}}
    assert of_kind(render(CHART, values), "NetworkPolicy") == []


class World:
    """Pods of a release, of models, and others, with addresses; and what the policies let pass between them."""

    def __init__(self, objects: Sequence[Object], others: Sequence[Object] = ()) -> None:
        """``others``: the objects of a release in the namespace TEAM, whose pods are called "team COMPONENT"."""
        pods: dict[str, Object] = {}
        for _, template in pod_templates(objects):
            labels = template["metadata"]["labels"]
            pods.setdefault(labels["app.kubernetes.io/component"], pod(SERVING, labels, len(pods)))
        self.own = tuple(pods)
        for _, template in pod_templates(others):
            labels = template["metadata"]["labels"]
            pods.setdefault(f"team {labels['app.kubernetes.io/component']}", pod(TEAM, labels, len(pods)))
        for component in ("worker", "pack", "profile", "patterns"):
            pods[component] = pod(SERVING, worker_labels(component), len(pods))
        pods["team worker"] = pod(TEAM, worker_labels("worker"), len(pods))
        pods["stranger"] = pod(SERVING, {"app": "shop"}, len(pods))
        pods["dns"] = pod("kube-system", {"k8s-app": "kube-dns"}, len(pods))
        self._pods = pods
        namespaces = [
            {"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}}
            for name in (SERVING, TEAM, "kube-system")
        ]
        policies = of_kind([*objects, *others], "NetworkPolicy")
        self._rules = {rules.name: rules for rules in rules_of_pods(policies, pods.values(), namespaces)}

    def address(self, name: str) -> str:
        found: str = self._pods[name]["status"]["podIP"]
        return found

    def reaches(self, source: str, target: str, port: int) -> bool:
        return self.leaves(source, self.address(target), port) and self.enters(self.address(source), target, port)

    def leaves(self, source: str, address: str, port: int, protocol: str = "tcp") -> bool:
        rules = self._of(source)
        return rules is None or passes(rules.egress, address, port, protocol)

    def enters(self, address: str, target: str, port: int) -> bool:
        rules = self._of(target)
        return rules is None or passes(rules.ingress, address, port, "tcp")

    def _of(self, name: str) -> PodRules | None:
        metadata = self._pods[name]["metadata"]
        return self._rules.get(f"{metadata['namespace']}/{metadata['name']}")


def passes(allows: Sequence[Allow] | None, address: str, port: int, protocol: str) -> bool:
    if allows is None:
        return True
    return any(
        (
            allow.networks is None
            or any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in allow.networks)
        )
        and (
            allow.ports is None
            or any(item.protocol == protocol and item.first <= port <= item.last for item in allow.ports)
        )
        for allow in allows
    )


def pod(namespace: str, labels: Object, number: int) -> Object:
    return {
        "metadata": {"name": f"pod-{number}", "namespace": namespace, "labels": labels},
        "spec": {"containers": []},
        # Every second address: neighbours would be joined into one network.
        "status": {"podIP": f"10.0.0.{2 * number + 1}", "phase": "Running"},
    }


def worker_labels(component: str, model: str = "chat") -> Object:
    return {
        "app.kubernetes.io/name": "premoe",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": "premoe-operator",
        "app.kubernetes.io/part-of": "premoe",
        "app.kubernetes.io/instance": model,
        "premoe.dev/model": model,
    }
