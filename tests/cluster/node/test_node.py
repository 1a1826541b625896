"""The test node is a real one: probes, Services, DNS, limits, restarts, security, and nothing left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import node_cgroups
from support.control_plane import KubectlFailed
from support.node import Node, running_node
from support.node_fixtures import node, node_namespace, probe_image, shared_node
from support.node_namespaces import processes_inside
from support.node_pods import (
    SERVE,
    SLEEP,
    apply,
    container_state,
    execute,
    get_pod,
    python_container,
    python_pod,
    wait_pod,
    wait_ready,
)
from support.process_group import wait_until

__all__ = ["node", "node_namespace", "probe_image", "shared_node"]

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(300)]
TESTS = Path(__file__).parents[2]
PROBE = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
GRPC_HEALTH = """
import grpc, concurrent.futures
from grpc_health.v1 import health, health_pb2_grpc
server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
server.add_insecure_port("0.0.0.0:50053"); server.start(); server.wait_for_termination()
"""
# kube-proxy hears of an endpoint a moment after its pod is ready, and refuses until then.
FETCH = """
import time, urllib.request
for _ in range(100):
    try:
        print(urllib.request.urlopen({url!r}, timeout=5).status)
        break
    except OSError:
        time.sleep(0.1)
"""


@pytest.fixture
def namespace(node_namespace: str, probe_image: str) -> str:
    """A restricted namespace on a node that has the image of test pods."""
    return node_namespace


def service(name: str, port: int) -> dict[str, object]:
    spec = {"selector": {"app": name}, "ports": [{"port": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def test_http_and_grpc_probes_make_pods_ready(node: Node, namespace: str) -> None:
    health = {"grpc": {"port": 50053}, "periodSeconds": 1}
    apply(
        node,
        namespace,
        python_pod("http", SERVE, readinessProbe=PROBE),
        python_pod("grpc", GRPC_HEALTH, readinessProbe=health),
        python_pod("never", SLEEP, readinessProbe=PROBE),
    )
    wait_ready(node, namespace, "http", "grpc")
    assert container_state(get_pod(node, namespace, "never"))["ready"] is False


def test_a_service_answers_by_name(node: Node, namespace: str) -> None:
    apply(node, namespace, python_pod("web", SERVE, readinessProbe=PROBE), service("web", 8080), python_pod("client"))
    wait_ready(node, namespace, "web", "client")
    fetch = FETCH.format(url=f"http://web.{namespace}.svc.cluster.local:8080")
    assert execute(node, namespace, "client", fetch) == "200\n"
    unknown = "import socket; socket.getaddrinfo('host.example.invalid', 80)"
    with pytest.raises(KubectlFailed, match=r"Name or service not known|No address associated"):
        execute(node, namespace, "client", unknown)


def test_exec_and_logs(node: Node, namespace: str) -> None:
    apply(node, namespace, python_pod("talker", f"print('hello'); {SLEEP}"))
    wait_ready(node, namespace, "talker")
    assert node.kubectl("logs", "-n", namespace, "talker") == "hello\n"
    assert execute(node, namespace, "talker", "import os; print(os.getuid(), os.environ['HOME'])") == "65532 /tmp\n"
    with pytest.raises(KubectlFailed, match="Read-only file system"):
        execute(node, namespace, "talker", "open('/opt/file', 'w')")


def test_memory_limit_kills(node: Node, namespace: str) -> None:
    eater = python_pod("eater", "x = bytearray(256 << 20)", resources={"limits": {"memory": "64Mi"}})
    eater["spec"]["restartPolicy"] = "Never"
    apply(node, namespace, eater)
    wait_pod(
        node,
        namespace,
        "eater",
        # containerd may hear of the memory event after the end, and then calls it Error: the kernel's SIGKILL is sure.
        lambda pod: container_state(pod).get("state", {}).get("terminated", {}).get("exitCode") == 128 + signal.SIGKILL,
        "the memory limit",
    )


def test_killed_container_restarts_and_deleted_pod_is_replaced(node: Node, namespace: str) -> None:
    labels = {"app": "steady"}
    pod = {"terminationGracePeriodSeconds": 0, "containers": [python_container(SERVE, readinessProbe=PROBE)]}
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    apply(
        node, namespace, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "steady"}, "spec": spec}
    )
    rollout = ("rollout", "status", "-n", namespace, "deployment/steady", "--timeout=60s")
    node.kubectl(*rollout)
    (first,) = node.kubectl("get", "pods", "-n", namespace, "-o", "name").split()
    container = container_state(get_pod(node, namespace, first.removeprefix("pod/")))["containerID"]
    node.run("ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", container.removeprefix("containerd://"))
    wait_pod(
        node,
        namespace,
        first.removeprefix("pod/"),
        lambda pod: container_state(pod).get("restartCount") == 1 and container_state(pod)["ready"],
        "the restart",
    )
    node.kubectl("delete", "-n", namespace, first)
    node.kubectl(*rollout)
    (second,) = node.kubectl("get", "pods", "-n", namespace, "-o", "name").split()
    assert second != first


def test_restricted_namespace_refuses_a_privileged_pod(node: Node, namespace: str) -> None:
    with pytest.raises(KubectlFailed, match="violates PodSecurity"):
        apply(node, namespace, python_pod("root", securityContext={"privileged": True}))


def test_a_pod_reaches_the_api_with_its_own_rights_only(node: Node, namespace: str) -> None:
    code = """
import ssl, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
request = urllib.request.Request("https://kubernetes.default.svc/api/v1/secrets")
request.add_header("Authorization", "Bearer " + open(folder + "/token").read())
try:
    urllib.request.urlopen(request, context=ssl.create_default_context(cafile=folder + "/ca.crt"))
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""
    apply(node, namespace, python_pod("caller"))
    wait_ready(node, namespace, "caller")
    answer = execute(node, namespace, "caller", code)
    assert answer.startswith("403 ")
    assert f"system:serviceaccount:{namespace}:default" in answer


def test_nothing_is_left(tmp_path: Path) -> None:
    """After a node has run, this machine has its processes, mounts, interfaces and folders of before."""

    def machine() -> tuple[object, ...]:
        mounts = Path("/proc/self/mountinfo").read_text()
        settings = [Path("/proc/sys", name).read_text() for name in ("vm/overcommit_memory", "kernel/panic")]
        folders = [Path(name).exists() for name in ("/var/lib/kubelet", "/var/log/pods", "/var/lib/cni", "/run/netns")]
        return mounts, sorted(os.listdir("/sys/class/net")), settings, folders

    before = machine()
    with running_node(tmp_path / "node") as running:
        namespace = os.readlink(f"/proc/{running.namespaces.pid}/ns/pid")
        inside = processes_inside(namespace)
        assert len(inside) > 3
        assert running.cgroup in {path.name for path in node_cgroups.leftovers()}
    assert processes_inside(namespace) == []
    assert running.cgroup not in {path.name for path in node_cgroups.leftovers()}
    assert machine() == before
    assert not (tmp_path / "node/var-lib").exists()


def test_a_killed_test_run_leaves_no_process(tmp_path: Path) -> None:
    """SIGKILL of the process that runs a node ends the node; a later one sweeps its control groups."""
    code = textwrap.dedent(
        f"""
        import sys, time
        sys.path[:0] = {[str(TESTS), str(TESTS.parent / "tools")]!r}
        from pathlib import Path
        from support.node import running_node
        with running_node(Path({str(tmp_path / "node")!r})) as node:
            print(node.namespaces.pid, node.cgroup, flush=True)
            time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, cgroup = owner.stdout.readline().split()
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: processes_inside(namespace) == [], 30, "the end of the node")
    assert cgroup in {path.name for path in node_cgroups.leftovers()}
    node_cgroups.sweep(cgroup, older_than_s=0)
    assert cgroup not in {path.name for path in node_cgroups.leftovers()}
