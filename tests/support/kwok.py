"""Fake nodes by KWOK: pods scheduled to them are Ready at once and run nothing, so thousands fit on one machine.

with running_kwok(control_plane, nodes=3):
    control_plane.kubectl("create", "deployment", "web", "--image=none.invalid/web", "--replicas=50", "-n", namespace)

Probes are ignored, Jobs' pods complete at once, deleted pods are gone at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.cluster_programs import cluster_program
from support.control_plane import ControlPlane
from support.process_group import ProcessGroup, wait_until

NODE_TIMEOUT_S = 60.0
CLEAN_UP_TIMEOUT_S = 300.0
ANNOTATION = "kwok.x-k8s.io/node"
LEASE_SECONDS = 40
NOT_READY = "node.kubernetes.io/not-ready"


@contextmanager
def running_kwok(
    cluster: ControlPlane,
    *,
    nodes: int = 1,
    pods_per_node: int = 1000,
    stages: Sequence[Path] = (),
    clean_up: bool = True,
) -> Iterator[Sequence[str]]:
    """Run KWOK with fake nodes, deleted with their pods at the end; yields the nodes' names.

    ``stages`` are files with further stages; among those that fit, one with a weight wins over one without.
    Without ``clean_up`` nodes and pods stay: thousands take minutes, and may end with the control plane.

    Raises ClusterMissing where kwok is not built, ProcessEnded or TimeoutError when the nodes do not get Ready.
    """
    command = [
        cluster_program("kwok"),
        f"--kubeconfig={cluster.kubeconfig}",
        f"--config={','.join(map(str, (cluster_program('kwok-stages.yaml'), *stages)))}",
        f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake",
        f"--node-lease-duration-seconds={LEASE_SECONDS}",
    ]
    run = secrets.token_hex(3)
    names = [f"fake-{run}-{number}" for number in range(nodes)]
    with ProcessGroup(cluster.kubeconfig.parent / "logs") as group:
        group.start("kwok", command)
        try:
            for name in names:
                cluster.request("POST", "/api/v1/nodes", json=fake_node(name, pods_per_node)).raise_for_status()
            wait_until(lambda: set(names) <= ready_nodes(cluster), NODE_TIMEOUT_S, "fake nodes", group, ["kwok"])
            yield names
        finally:
            if clean_up:
                _remove(cluster, names)


def fake_node(name: str, pods: int = 1000) -> dict[str, Any]:
    """The manifest of a node with room for many pods; other capacities by patching its status."""
    room = {"cpu": "1000", "memory": "4Ti", "ephemeral-storage": "4Ti", "pods": str(pods)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {ANNOTATION: "fake"},
            "labels": {"type": "kwok", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        "status": {"capacity": room, "allocatable": room},
    }


def ready_nodes(cluster: ControlPlane) -> set[str]:
    """Names of the nodes, fake and real, that take pods: Ready, and no longer tainted from the time before."""
    listed = cluster.get("/api/v1/nodes") or {}
    return {
        node["metadata"]["name"]
        for node in listed.get("items", ())
        if any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", ()))
        and not any(taint["key"] == NOT_READY for taint in node["spec"].get("taints", ()))
    }


def _remove(cluster: ControlPlane, names: Sequence[str]) -> None:
    """Delete the nodes, so that no new pods come to them, and the pods, which nobody else would ever end."""
    if not cluster.ready():
        return
    for name in names:
        cluster.request("DELETE", f"/api/v1/nodes/{name}")
        on_node = {"fieldSelector": f"spec.nodeName={name}"}
        pods = cluster.request("GET", "/api/v1/pods", params=on_node).raise_for_status().json()["items"]
        for namespace in {pod["metadata"]["namespace"] for pod in pods}:
            path = f"/api/v1/namespaces/{namespace}/pods"
            body = {"gracePeriodSeconds": 0}
            cluster.request("DELETE", path, params=on_node, json=body, timeout=CLEAN_UP_TIMEOUT_S).raise_for_status()
