"""NetworkPolicies are enforced on the test node: each probe that must pass has one beside it that must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from support.cluster_fixtures import create_namespace, delete_namespace
from support.node import Node
from support.node_fixtures import node, node_namespace, probe_image, shared_node
from support.node_namespaces import ADDRESS
from support.node_pods import SERVE, apply, execute, get_pod, python_pod, wait_ready
from support.process_group import wait_until

__all__ = ["node", "node_namespace", "probe_image", "shared_node"]

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(300)]
TWO_PORTS = """
import http.server as h, threading
for port in (8080, 9090):
    threading.Thread(target=h.HTTPServer(("0.0.0.0", port), h.SimpleHTTPRequestHandler).serve_forever).start()
"""
CONNECTS = """
import socket
try:
    socket.create_connection(({host!r}, {port}), timeout={timeout}).close()
    print("open")
except TimeoutError:
    print("dropped")
except ConnectionRefusedError:
    print("refused")
except socket.gaierror:
    print("unknown")
"""
PROBE = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
DNS = {
    "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
    "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
}


@pytest.fixture
def namespace(node: Node, node_namespace: str, probe_image: str) -> str:
    """A namespace with a server of two ports, a friend and a stranger."""
    server = python_pod("server", TWO_PORTS, readinessProbe=PROBE)
    apply(node, node_namespace, server, python_pod("friend"), python_pod("stranger"))
    wait_ready(node, node_namespace, "server", "friend", "stranger")
    return node_namespace


def policy(name: str, app: str | None, **spec: Any) -> dict[str, Any]:
    selector: Mapping[str, Any] = {"matchLabels": {"app": app}} if app else {}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": selector, **spec},
    }


def address(node: Node, namespace: str, pod: str) -> str:
    return str(get_pod(node, namespace, pod)["status"]["podIP"])


def connect(node: Node, namespace: str, pod: str, host: str, port: int, timeout_s: float = 1.0) -> str:
    """Whether a connection from a pod is `open`, `refused` or `dropped`, or its host's name `unknown` (yet)."""
    return execute(node, namespace, pod, CONNECTS.format(host=host, port=port, timeout=timeout_s)).strip()


def wait_dropped(node: Node, namespace: str, pod: str, host: str, port: int) -> None:
    """Wait until a policy is in force, by the connection that it forbids."""
    wait_until(
        lambda: connect(node, namespace, pod, host, port, timeout_s=0.5) == "dropped",
        30,
        f"the policy against {pod} → {host}:{port}",
    )


def test_without_policies_everything_is_open(node: Node, namespace: str) -> None:
    server = address(node, namespace, "server")
    assert connect(node, namespace, "stranger", server, 8080) == "open"
    assert connect(node, namespace, "stranger", server, 9090) == "open"


def test_ingress_by_pod_and_port(node: Node, namespace: str) -> None:
    server = address(node, namespace, "server")
    allow = {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": 8080}]}
    apply(node, namespace, policy("server", "server", ingress=[allow]))
    wait_dropped(node, namespace, "stranger", server, 8080)
    assert connect(node, namespace, "friend", server, 8080) == "open"
    assert connect(node, namespace, "friend", server, 9090) == "dropped"
    # The policy is about the server: others are as open as before, and the kubelet's probes still pass.
    assert connect(node, namespace, "server", address(node, namespace, "friend"), 8080, 0.5) == "refused"
    wait_ready(node, namespace, "server")


def test_ingress_through_a_service_and_across_namespaces(node: Node, namespace: str) -> None:
    other = create_namespace(node.control_plane, "other")
    try:
        apply(node, other, python_pod("friend"))
        wait_ready(node, other, "friend")
        spec = {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]}
        apply(node, namespace, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}, "spec": spec})
        name = f"server.{namespace}.svc.cluster.local"
        wait_until(lambda: connect(node, other, "friend", name, 80) == "open", 30, "the Service")
        own = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
        apply(node, namespace, policy("server", "server", ingress=[{"from": [own]}]))
        wait_dropped(node, other, "friend", name, 80)
        assert connect(node, namespace, "stranger", name, 80) == "open"
    finally:
        delete_namespace(node.control_plane, other)


def test_egress_names_dns_and_addresses_of_the_node(node: Node, namespace: str) -> None:
    server = address(node, namespace, "server")
    api = int(node.control_plane.url.rpartition(":")[2])
    assert connect(node, namespace, "friend", ADDRESS, api) == "open"
    apply(node, namespace, policy("friend", "friend", egress=[DNS], policyTypes=["Egress"]))
    wait_dropped(node, namespace, "friend", server, 8080)
    assert connect(node, namespace, "friend", ADDRESS, api) == "dropped"
    assert connect(node, namespace, "friend", "kubernetes.default.svc.cluster.local", 443) == "dropped"
    block = {"to": [{"ipBlock": {"cidr": f"{ADDRESS}/32"}}], "ports": [{"port": api}]}
    apply(node, namespace, policy("friend", "friend", egress=[DNS, block], policyTypes=["Egress"]))
    # The address behind the Service is what counts.
    wait_until(
        lambda: connect(node, namespace, "friend", "kubernetes.default.svc.cluster.local", 443) == "open",
        30,
        "the policy for the API server",
    )
    assert connect(node, namespace, "friend", server, 8080) == "dropped"


def test_rules_follow_pods_and_policies(node: Node, namespace: str) -> None:
    server = address(node, namespace, "server")
    apply(node, namespace, policy("deny", None, policyTypes=["Ingress", "Egress"]))
    wait_dropped(node, namespace, "friend", server, 8080)
    node.kubectl("delete", "-n", namespace, "networkpolicy", "deny")
    wait_until(lambda: connect(node, namespace, "friend", server, 8080) == "open", 30, "the end of the policy")
    allow = {"from": [{"podSelector": {"matchLabels": {"app": "late"}}}]}
    apply(node, namespace, policy("server", "server", ingress=[allow]))
    wait_dropped(node, namespace, "friend", server, 8080)
    apply(node, namespace, python_pod("late", SERVE))
    wait_ready(node, namespace, "late")
    wait_until(lambda: connect(node, namespace, "late", server, 8080) == "open", 30, "the rule for the new pod")
    node.enforcer.check()
