"""The control plane that cluster tests run on is a real one: what they rely on, proved once."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster_fixtures import control_plane, install_crd, namespace, require_programs, restricted_namespace
from support.control_plane import ControlPlane, KubectlFailed, running_control_plane
from support.kwok import ready_nodes, running_kwok
from support.process_group import wait_until

__all__ = ["control_plane", "namespace", "restricted_namespace"]

pytestmark = pytest.mark.cluster
APPLY = {"Content-Type": "application/apply-patch+yaml"}

WIDGETS: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.test.premoe.dev"},
    "spec": {
        "group": "test.premoe.dev",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"low": {"type": "integer"}, "high": {"type": "integer", "default": 9}},
                                "required": ["low"],
                                "x-kubernetes-validations": [
                                    {"rule": "self.low <= self.high", "message": "low is above high"},
                                    {"rule": "self.low == oldSelf.low", "message": "low is immutable"},
                                ],
                            },
                            "status": {"type": "object", "properties": {"seen": {"type": "integer"}}},
                        },
                    }
                },
            }
        ],
    },
}


def config_map(name: str, **extra: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **extra}}


def apply(cluster: ControlPlane, namespace: str, name: str, value: str, manager: str) -> httpx.Response:
    """Server-side apply of a ConfigMap with one key."""
    return cluster.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/configmaps/{name}",
        params={"fieldManager": manager},
        headers=APPLY,
        content=json.dumps({**config_map(name), "data": {"key": value}}),
    )


def test_ready_and_of_the_pinned_version(control_plane: ControlPlane) -> None:
    assert control_plane.ready()
    version = json.loads(control_plane.kubectl("version", "-o", "json"))
    assert version["serverVersion"]["gitVersion"] == version["clientVersion"]["gitVersion"]
    assert version["serverVersion"]["gitVersion"].startswith("v1.")


def test_custom_resources_with_rules_defaults_and_status(control_plane: ControlPlane, namespace: str) -> None:
    def widget(**spec: int) -> str:
        document = {"apiVersion": "test.premoe.dev/v1", "kind": "Widget", "metadata": {"name": "one"}, "spec": spec}
        return json.dumps(document)

    install_crd(control_plane, json.dumps(WIDGETS))
    with pytest.raises(KubectlFailed, match="low is above high"):
        control_plane.kubectl("apply", "-n", namespace, "-f", "-", stdin=widget(low=10))
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", stdin=widget(low=3))
    path = f"/apis/test.premoe.dev/v1/namespaces/{namespace}/widgets/one"
    found = control_plane.get(path)
    assert found is not None
    assert found["spec"] == {"low": 3, "high": 9}
    with pytest.raises(KubectlFailed, match="low is immutable"):
        control_plane.kubectl("apply", "-n", namespace, "-f", "-", stdin=widget(low=4))
    merge = {"Content-Type": "application/merge-patch+json"}
    patch = json.dumps({"spec": {"high": 5}, "status": {"seen": 1}})
    control_plane.request("PATCH", path + "/status", headers=merge, content=patch).raise_for_status()
    patched = control_plane.get(path)
    assert patched is not None
    assert (patched["spec"]["high"], patched["status"]) == (9, {"seen": 1})

    owner = {"apiVersion": "test.premoe.dev/v1", "kind": "Widget", "name": "one", "uid": patched["metadata"]["uid"]}
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    control_plane.request("POST", maps, json=config_map("owned", ownerReferences=[owner])).raise_for_status()
    control_plane.request("DELETE", path).raise_for_status()
    wait_until(lambda: control_plane.get(f"{maps}/owned") is None, 60, "garbage collection", control_plane.processes)

    control_plane.kubectl("delete", "crd", "widgets.test.premoe.dev")
    assert control_plane.get(path) is None


def test_server_side_apply_creates_and_reports_conflicts(control_plane: ControlPlane, namespace: str) -> None:
    assert apply(control_plane, namespace, "one", "a", "first").status_code == 201
    assert apply(control_plane, namespace, "one", "a", "first").status_code == 200
    refused = apply(control_plane, namespace, "one", "b", "second")
    assert refused.status_code == 409
    assert refused.json()["details"]["causes"][0]["field"] == ".data.key"
    found = control_plane.get(f"/api/v1/namespaces/{namespace}/configmaps/one")
    assert found is not None
    assert found["data"] == {"key": "a"}


def test_unknown_fields_are_refused_in_a_dry_run(control_plane: ControlPlane, namespace: str) -> None:
    broken = json.dumps({**config_map("one"), "dato": {}})
    with pytest.raises(KubectlFailed, match="dato"):
        control_plane.kubectl("apply", "--dry-run=server", "-n", namespace, "-f", "-", stdin=broken)


def test_rights_are_checked(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    assert control_plane.request("GET", path, user="nobody").status_code == 403
    assert control_plane.request("GET", path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    control_plane.kubectl("create", "rolebinding", "see", "--clusterrole=view", "--user=nobody", "-n", namespace)
    wait_until(lambda: control_plane.request("GET", path, user="nobody").status_code == 200, 30, "the role binding")
    assert control_plane.request("POST", path, user="nobody", json=config_map("one")).status_code == 403


def test_calls_are_counted_by_user(control_plane: ControlPlane, namespace: str) -> None:
    start = control_plane.audit_end()
    path = f"/api/v1/namespaces/{namespace}/configmaps/absent"
    control_plane.request("GET", path, user="nobody")

    def calls() -> list[tuple[str, str, str, str, int]]:
        found = [call for call in control_plane.audit(start) if call.user == "nobody"]
        return [(call.verb, call.resource, call.namespace, call.name, call.code) for call in found]

    wait_until(lambda: calls() != [], 30, "the audit log", control_plane.processes)
    assert calls() == [("get", "configmaps", namespace, "absent", 403)]
    assert not any(call.user.startswith("system:kube-") for call in control_plane.audit())


def test_a_service_account_acts_under_its_own_name(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "serviceaccount", "worker", "-n", namespace)
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "worker")
    who = json.loads(control_plane.kubectl("auth", "whoami", "-o", "json", kubeconfig=kubeconfig))
    assert who["status"]["userInfo"]["username"] == f"system:serviceaccount:{namespace}:worker"
    with pytest.raises(KubectlFailed, match="cannot list resource"):
        control_plane.kubectl("get", "pods", "-n", namespace, kubeconfig=kubeconfig)
    assert kubeconfig.stat().st_mode & 0o077 == 0


def test_what_an_object_owned_goes_with_it(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    uid = control_plane.request("POST", path, json=config_map("owner")).raise_for_status().json()["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    control_plane.request("POST", path, json=config_map("owned", ownerReferences=[owner])).raise_for_status()
    control_plane.request("DELETE", f"{path}/owner").raise_for_status()
    wait_until(lambda: control_plane.get(f"{path}/owned") is None, 60, "garbage collection", control_plane.processes)


def test_blocking_an_owner_needs_the_right_to_finalize_it(control_plane: ControlPlane, namespace: str) -> None:
    """OwnerReferencesPermissionEnforcement is on: without update on finalizers, blockOwnerDeletion is refused."""
    deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    uid = control_plane.request("POST", deployments, json=deployment("owner", 0)).raise_for_status().json()
    owner = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "owner",
        "uid": uid["metadata"]["uid"],
        "blockOwnerDeletion": True,
    }
    control_plane.kubectl("create", "role", "maps", "--verb=create,get", "--resource=configmaps", "-n", namespace)
    control_plane.kubectl("create", "rolebinding", "maps", "--role=maps", "--user=nobody", "-n", namespace)
    path = f"/api/v1/namespaces/{namespace}/configmaps"

    def create(name: str, **extra: Any) -> httpx.Response:
        return control_plane.request("POST", path, user="nobody", json=config_map(name, **extra))

    wait_until(lambda: create("free").status_code in (201, 409), 30, "the role binding")
    refused = create("owned", ownerReferences=[owner])
    assert refused.status_code == 403
    assert "blockOwnerDeletion" in refused.json()["message"]


def test_a_restricted_namespace_refuses_a_plain_pod(control_plane: ControlPlane, restricted_namespace: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "plain"},
        "spec": {"containers": [{"name": "plain", "image": "none.invalid/plain"}]},
    }
    refused = control_plane.request("POST", f"/api/v1/namespaces/{restricted_namespace}/pods", json=pod)
    assert refused.status_code == 403
    assert "violates PodSecurity" in refused.json()["message"]


def test_fifty_fake_pods_become_ready(control_plane: ControlPlane, namespace: str) -> None:
    require_programs("kwok", "kwok-stages.yaml")
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    with running_kwok(control_plane, nodes=2) as nodes:
        control_plane.request("POST", path, json=deployment("web", 50)).raise_for_status()

        def all_ready() -> bool:
            found = control_plane.get(f"{path}/web")
            return found is not None and found.get("status", {}).get("readyReplicas") == 50

        wait_until(all_ready, 60, "50 fake pods", control_plane.processes)
        pods = control_plane.get(f"/api/v1/namespaces/{namespace}/pods")
        assert pods is not None
        # How it spreads them is the scheduler's own affair.
        assert {pod["spec"]["nodeName"] for pod in pods["items"]} <= set(nodes)
    assert not set(nodes) & ready_nodes(control_plane)
    pods = control_plane.get(f"/api/v1/namespaces/{namespace}/pods")
    assert pods is not None
    assert not any(pod["spec"].get("nodeName") in nodes for pod in pods["items"])


def test_data_survives_a_restart_of_the_api_server(control_plane: ControlPlane, namespace: str) -> None:
    apply(control_plane, namespace, "kept", "a", "first").raise_for_status()
    control_plane.stop_apiserver()
    assert not control_plane.ready()
    control_plane.start_apiserver()
    found = control_plane.get(f"/api/v1/namespaces/{namespace}/configmaps/kept")
    assert found is not None
    assert found["data"] == {"key": "a"}
    # The controllers live through it: a new Deployment gets its ReplicaSet.
    path = f"/apis/apps/v1/namespaces/{namespace}"
    control_plane.request("POST", f"{path}/deployments", json=deployment("after", 0)).raise_for_status()

    def has_replica_set() -> bool:
        return bool((control_plane.get(f"{path}/replicasets") or {})["items"])

    wait_until(has_replica_set, 60, "a ReplicaSet", control_plane.processes)
    control_plane.check()


def test_a_write_waits_for_a_paused_etcd(control_plane: ControlPlane, namespace: str) -> None:
    answers: list[int] = []

    def write() -> None:
        answers.append(apply(control_plane, namespace, "late", "a", "first").status_code)

    writer = threading.Thread(target=write)
    control_plane.pause_etcd()
    try:
        writer.start()
        writer.join(1.0)
        assert writer.is_alive()
    finally:
        control_plane.resume_etcd()
    writer.join(60.0)
    assert answers == [201]
    control_plane.check()


@pytest.mark.slow
def test_nothing_is_left_of_a_second_control_plane(control_plane: ControlPlane, tmp_path: Path) -> None:
    """Two run beside each other; the end of one takes its processes and data and leaves the other."""
    with running_control_plane(tmp_path) as second:
        assert second.url != control_plane.url
        pids = [second.processes.pid(name) for name in ("etcd", "kube-apiserver", "kube-scheduler")]
        second.pause_etcd()
        data = [Path(one.split("=", 1)[1]) for one in arguments(pids[0]) if one.startswith("--data-dir=")]
        assert data[0].is_dir()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not data[0].exists()
    assert control_plane.ready()


def deployment(name: str, replicas: int) -> dict[str, Any]:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "web", "image": "none.invalid/web"}]},
            },
        },
    }


def arguments(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
