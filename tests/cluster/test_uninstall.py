"""Both ways of leaving, as docs/uninstall.md has them; nothing is left but the definition of the custom resource."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.charts import CHART, CRD_CHART, Object, helm, install, values_of
from support.cluster_fixtures import control_plane, install_crd, namespace
from support.control_plane import ControlPlane
from support.process_group import wait_until

__all__ = ["control_plane", "namespace"]

pytestmark = pytest.mark.cluster

DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/prunedmodels.premoe.dev"
MODELS = "/apis/premoe.dev/v1alpha1/namespaces/{}/prunedmodels"
IGNORED = {
    # Kubernetes' own records, and namespaces of other tests that are still going.
    ("", "events"),
    ("events.k8s.io", "events"),
    ("", "namespaces"),
}
TRIAL = {"qdrant": {"trial": {"enabled": True, "storageSize": "1Gi"}}}
"""With a StatefulSet and its claim."""


@pytest.fixture
def defined(control_plane: ControlPlane) -> Iterator[None]:
    """The chart premoe-crds, installed."""
    install_crd(control_plane, (CRD_CHART / "templates" / "prunedmodels.yaml").read_text())
    flags = ["--take-ownership", "--force-conflicts"]
    install(control_plane, CRD_CHART, "default", release="premoe-crds", flags=flags)
    yield
    if "premoe-crds" in helm("list", "--short", "-n", "default", kubeconfig=control_plane.kubeconfig):
        helm("uninstall", "premoe-crds", "-n", "default", kubeconfig=control_plane.kubeconfig)


@pytest.mark.usefixtures("defined")
@pytest.mark.parametrize("watched", ["all", "listed"])
def test_models_first_then_the_release_leaves_nothing(
    control_plane: ControlPlane, namespace: str, watched: str
) -> None:
    before = everything(control_plane, namespace)
    values = values_of("plain") | TRIAL | ({"watchNamespaces": [namespace]} if watched == "listed" else {})
    install(control_plane, CHART, namespace, values)
    make_model(control_plane, namespace)
    claim = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/storage-premoe-qdrant-0"
    wait_until(lambda: control_plane.get(claim) is not None, 30, "the claim", control_plane.processes)
    assert everything(control_plane, namespace) > before

    control_plane.kubectl("delete", "prunedmodels", "--all", "-n", namespace, "--timeout=30s")
    child = f"/apis/apps/v1/namespaces/{namespace}/deployments/chat-worker"
    wait_until(lambda: control_plane.get(child) is None, 60, "the garbage collector", control_plane.processes)
    helm("uninstall", "premoe", "--namespace", namespace, kubeconfig=control_plane.kubeconfig)
    wait_until(
        lambda: everything(control_plane, namespace) == before, 60, "an empty namespace", control_plane.processes
    )

    helm("uninstall", "premoe-crds", "--namespace", "default", kubeconfig=control_plane.kubeconfig)
    assert control_plane.get(DEFINITION) is not None


@pytest.mark.usefixtures("defined")
def test_without_the_operator_everything_goes_on_serving(control_plane: ControlPlane, namespace: str) -> None:
    before = everything(control_plane, namespace)
    install(control_plane, CHART, namespace, values_of("plain"))
    make_model(control_plane, namespace)
    names = ("premoe-retrieval", "premoe-expert-store", "premoe-gateway", "chat-worker")
    running = {name: identity(control_plane, namespace, name) for name in names}

    values = values_of("plain") | {"operator": {"enabled": False}}
    install(control_plane, CHART, namespace, values, verb=("upgrade",))
    wait_until(
        lambda: not any("premoe-operator" in name for *_, name in everything(control_plane, namespace)),
        30,
        "the end of the operator's objects",
        control_plane.processes,
    )
    assert control_plane.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/premoe-{namespace}") is None
    assert {name: identity(control_plane, namespace, name) for name in names} == running
    assert control_plane.get(f"{MODELS.format(namespace)}/chat") is not None

    # An operator that comes back finds what it left.
    install(control_plane, CHART, namespace, values_of("plain"), verb=("upgrade",))
    assert {name: identity(control_plane, namespace, name) for name in names} == running

    # Or the release goes while models and workers stay, and both go when their owner does.
    helm("uninstall", "premoe", "--namespace", namespace, kubeconfig=control_plane.kubeconfig)
    assert identity(control_plane, namespace, "chat-worker") == running["chat-worker"]
    control_plane.kubectl("delete", "prunedmodels", "--all", "-n", namespace, "--timeout=30s")
    wait_until(
        lambda: everything(control_plane, namespace) == before, 60, "an empty namespace", control_plane.processes
    )


def make_model(cluster: ControlPlane, namespace: str) -> None:
    """A PrunedModel, and a worker Deployment that it owns as the operator would make it."""
    spec = {"model": {"uri": "s3://models/tiny"}, "budget": "2/4"}
    body = {
        "apiVersion": "premoe.dev/v1alpha1",
        "kind": "PrunedModel",
        "metadata": {"name": "chat"},
        "spec": spec,
    }
    model = cluster.request("POST", MODELS.format(namespace), json=body).raise_for_status().json()
    labels = {"app.kubernetes.io/name": "premoe", "app.kubernetes.io/component": "worker", "premoe.dev/model": "chat"}
    owner = {
        "apiVersion": model["apiVersion"],
        "kind": model["kind"],
        "name": "chat",
        "uid": model["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "premoe-worker", "image": "worker:1"}]}}
    deployment = {
        "metadata": {"name": "chat-worker", "labels": labels, "ownerReferences": [owner]},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    cluster.request("POST", path, json=deployment).raise_for_status()


def identity(cluster: ControlPlane, namespace: str, name: str) -> tuple[str, int]:
    """UID and generation of a Deployment: both stay when nothing touches it."""
    found = cluster.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
    assert found is not None, name
    return found["metadata"]["uid"], found["metadata"]["generation"]


def everything(cluster: ControlPlane, namespace: str) -> set[tuple[str, str, str]]:
    """(group, resource, name) of every object of the cluster as a whole and of one namespace."""
    found = set()
    for group, resource, path in listable(cluster, namespace):
        if (group, resource) in IGNORED:
            continue
        listed = cluster.get(path)
        for obj in (listed or {}).get("items") or []:
            found.add((group, resource, obj["metadata"]["name"]))
    return found


def listable(cluster: ControlPlane, namespace: str) -> Iterator[tuple[str, str, str]]:
    """(group, resource, path) of everything that can be listed."""
    groups = cluster.get("/apis")
    assert groups is not None
    versions = [group["preferredVersion"]["groupVersion"] for group in groups["groups"]]
    for version, root in [("v1", "/api/v1"), *((version, f"/apis/{version}") for version in versions)]:
        listed: Object = cluster.get(root) or {}
        for resource in listed.get("resources") or []:
            if "list" in resource["verbs"] and "/" not in resource["name"]:
                scope = f"/namespaces/{namespace}" if resource["namespaced"] else ""
                yield version.rpartition("/")[0], resource["name"], f"{root}{scope}/{resource['name']}"
