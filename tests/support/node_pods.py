"""Small pods for tests of the node: a Python program each, within the `restricted` pod security standard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from support.deployable_images import reference
from support.node import Node
from support.process_group import wait_until

WAIT_S = 60
SLEEP = "import time; time.sleep(3600)"
SERVE = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8080, bind='0.0.0.0')"
"""Answers GET on port 8080."""
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def python_container(code: str, **fields: Any) -> dict[str, Any]:
    """A container that runs Python code; ``fields`` are the container's."""
    return {
        "name": "main",
        "image": reference("probe"),
        "imagePullPolicy": "Never",
        "command": ["python", "-u", "-c", code],
        "securityContext": RESTRICTED,
        **fields,
    }


def python_pod(
    name: str, code: str = SLEEP, *, labels: Mapping[str, str] | None = None, **fields: Any
) -> dict[str, Any]:
    """A pod of one such container that runs in / and is not waited for when it goes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name, **(labels or {})}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [python_container(code, **fields)]},
    }


def apply(node: Node, namespace: str, *objects: Mapping[str, Any]) -> None:
    """kubectl apply."""
    document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    node.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(document))


def wait_ready(node: Node, namespace: str, *names: str) -> None:
    """Wait until pods are Ready. Raises KubectlFailed."""
    pods = [f"pod/{name}" for name in names]
    node.kubectl("wait", "-n", namespace, "--for=condition=Ready", f"--timeout={WAIT_S}s", *pods)


def get_pod(node: Node, namespace: str, name: str) -> dict[str, Any]:
    """The pod's object; empty when there is none."""
    return node.control_plane.get(f"/api/v1/namespaces/{namespace}/pods/{name}") or {}


def wait_pod(node: Node, namespace: str, name: str, condition: Callable[[dict[str, Any]], bool], what: str) -> None:
    """Wait until the pod's object fulfils a condition. Raises TimeoutError."""
    wait_until(lambda: condition(get_pod(node, namespace, name)), WAIT_S, what, node.group, poll_s=0.2)


def execute(node: Node, namespace: str, pod: str, code: str) -> str:
    """Run Python code in a pod; returns what it prints. Raises KubectlFailed with the traceback."""
    return node.kubectl("exec", "-n", namespace, pod, "--", "python", "-c", code)


def container_state(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The status of a pod's only container; empty before it has one."""
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    first: dict[str, Any] = statuses[0]
    return first
