"""Which traffic NetworkPolicies allow, as the test node's enforcer reads them."""

from __future__ import annotations

from typing import Any

import pytest
from support.network_policies import Allow, PodRules, Port, matches, rules_of_pods, ruleset

NAMESPACES = [
    {"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a", "team": "red"}}},
    {"metadata": {"name": "b", "labels": {"kubernetes.io/metadata.name": "b"}}},
]
RED = {"namespaceSelector": {"matchLabels": {"team": "red"}}}


def pod(namespace: str, app: str, address: str, *, port: int = 8080, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": namespace, "name": app, "labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"phase": "Running", "podIP": address, **status},
    }


def policy(app: str | None, **spec: Any) -> dict[str, Any]:
    selector = {"matchLabels": {"app": app}} if app else {}
    return {"metadata": {"namespace": "a", "name": "p"}, "spec": {"podSelector": selector, **spec}}


PODS = [
    pod("a", "web", "10.244.0.2"),
    pod("a", "db", "10.244.0.3", port=5432),
    pod("b", "web", "10.244.0.4", port=9090),
]


def one(*policies: dict[str, Any], name: str = "a/web") -> PodRules:
    """The rules of one pod under these policies."""
    (found,) = (rules for rules in rules_of_pods(policies, PODS, NAMESPACES) if rules.name == name)
    return found


def test_without_policies_nothing_is_isolated() -> None:
    assert rules_of_pods([], PODS, NAMESPACES) == ()


def test_default_deny_isolates_every_pod_of_its_namespace_in_both_directions() -> None:
    deny = policy(None, policyTypes=["Ingress", "Egress"])
    assert rules_of_pods([deny], PODS, NAMESPACES) == (
        PodRules("a/db", "10.244.0.3", (), ()),
        PodRules("a/web", "10.244.0.2", (), ()),
    )


@pytest.mark.parametrize(
    ("spec", "isolated"),
    [
        ({}, (True, False)),
        ({"egress": [{}]}, (True, True)),
        ({"egress": [], "policyTypes": ["Egress"]}, (False, True)),
        ({"ingress": [{}], "policyTypes": ["Ingress"]}, (True, False)),
    ],
)
def test_directions(spec: dict[str, Any], isolated: tuple[bool, bool]) -> None:
    rules = one(policy("web", **spec))
    assert (rules.ingress is not None, rules.egress is not None) == isolated


@pytest.mark.parametrize(
    ("peers", "networks"),
    [
        ([], None),
        ([{"podSelector": {}}], ("10.244.0.2/31",)),
        ([{"podSelector": {"matchLabels": {"app": "db"}}}], ("10.244.0.3/32",)),
        ([{"namespaceSelector": {}}], ("10.244.0.2/31", "10.244.0.4/32")),
        ([{**RED, "podSelector": {"matchLabels": {"app": "web"}}}], ("10.244.0.2/32",)),
        ([RED, {"ipBlock": {"cidr": "192.0.2.0/24"}}], ("10.244.0.2/31", "192.0.2.0/24")),
        ([RED, {"ipBlock": {"cidr": "10.244.0.0/24"}}], ("10.244.0.0/24",)),
        ([{"ipBlock": {"cidr": "192.0.2.0/30", "except": ["192.0.2.1/32"]}}], ("192.0.2.0/32", "192.0.2.2/31")),
        ([{"ipBlock": {"cidr": "2001:db8::/32"}}], ()),
        ([{"podSelector": {"matchLabels": {"app": "missing"}}}], ()),
    ],
)
def test_peers(peers: list[dict[str, Any]], networks: tuple[str, ...] | None) -> None:
    assert one(policy("web", ingress=[{"from": peers}])).ingress == (Allow(networks, None),)
    egress = policy("web", egress=[{"to": peers}], policyTypes=["Egress"])
    assert one(egress).egress == (Allow(networks, None),)


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([], None),
        ([{"port": 53, "protocol": "UDP"}], (Port("udp", 53, 53),)),
        ([{"port": 8000, "endPort": 8010}], (Port("tcp", 8000, 8010),)),
        ([{"protocol": "TCP"}], (Port("tcp", 0, 65535),)),
        ([{"port": "http"}], (Port("tcp", 8080, 8080),)),
        ([{"port": "missing"}], ()),
    ],
)
def test_ports_of_ingress(ports: list[dict[str, Any]], expected: tuple[Port, ...] | None) -> None:
    assert one(policy("web", ingress=[{"ports": ports}])).ingress == (Allow(None, expected),)


def test_a_named_port_of_egress_is_that_of_each_target() -> None:
    everywhere = policy(
        "db", policyTypes=["Egress"], egress=[{"to": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]}]
    )
    assert one(everywhere, name="a/db").egress == (
        Allow(("10.244.0.2/32",), (Port("tcp", 8080, 8080),)),
        Allow(("10.244.0.3/32",), (Port("tcp", 5432, 5432),)),
        Allow(("10.244.0.4/32",), (Port("tcp", 9090, 9090),)),
    )


def test_policies_of_one_pod_add_up() -> None:
    first = policy("web", ingress=[{"ports": [{"port": 1}]}])
    second = policy(None, ingress=[{"ports": [{"port": 2}]}])
    assert one(first, second).ingress == (
        Allow(None, (Port("tcp", 1, 1),)),
        Allow(None, (Port("tcp", 2, 2),)),
    )


@pytest.mark.parametrize(
    "left_out",
    [
        pod("a", "web", "10.244.0.2", phase="Succeeded"),
        pod("a", "web", ""),
        {**pod("a", "web", "10.200.0.1"), "spec": {"hostNetwork": True, "containers": []}},
    ],
)
def test_pods_without_an_address_of_their_own_have_no_rules(left_out: dict[str, Any]) -> None:
    assert rules_of_pods([policy(None)], [left_out], NAMESPACES) == ()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ({"key": "app", "operator": "In", "values": ["web", "db"]}, True),
        ({"key": "app", "operator": "NotIn", "values": ["web"]}, False),
        ({"key": "missing", "operator": "NotIn", "values": ["web"]}, True),
        ({"key": "app", "operator": "Exists"}, True),
        ({"key": "app", "operator": "DoesNotExist"}, False),
    ],
)
def test_match_expressions(expression: dict[str, Any], expected: bool) -> None:
    assert matches({"matchExpressions": [expression]}, {"app": "web"}) is expected


def test_an_unknown_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="Near"):
        matches({"matchExpressions": [{"key": "app", "operator": "Near"}]}, {})


def test_ruleset() -> None:
    rules = [
        PodRules("a/db", "10.244.0.3", (), None),
        PodRules(
            "a/web",
            "10.244.0.2",
            (Allow(("10.244.0.3/32",), (Port("tcp", 80, 80),)), Allow((), None)),
            (Allow(None, (Port("udp", 53, 53),)), Allow(("192.0.2.0/24",), None)),
        ),
    ]
    assert (
        ruleset(rules)
        == """\
table ip premoe_policies
delete table ip premoe_policies
table ip premoe_policies {
 chain ingress_10_244_0_3 { # a/db
  drop
 }
 chain ingress_10_244_0_2 { # a/web
  ip saddr { 10.244.0.3/32 } tcp dport 80 return
  drop
 }
 chain egress_10_244_0_2 { # a/web
  udp dport 53 return
  ip daddr { 192.0.2.0/24 } return
  drop
 }
 chain forward {
  type filter hook forward priority -10; policy accept;
  ct state established,related accept
  ip saddr vmap { 10.244.0.2 : jump egress_10_244_0_2 }
  ip daddr vmap { 10.244.0.3 : jump ingress_10_244_0_3, 10.244.0.2 : jump ingress_10_244_0_2 }
 }
 chain input {
  type filter hook input priority -10; policy accept;
  ct state established,related accept
  ip saddr vmap { 10.244.0.2 : jump egress_10_244_0_2 }
 }
}
"""
    )
