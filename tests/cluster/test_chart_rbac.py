"""What the chart lets the operator do, asked of a real API server: everything it needs and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.charts import CHART, helm, install, values_of
from support.cluster_fixtures import control_plane, create_namespace, delete_namespace, namespace
from support.control_plane import ControlPlane

__all__ = ["control_plane", "namespace"]

pytestmark = pytest.mark.cluster

CHILD = frozenset({"get", "list", "watch", "create", "patch", "delete"})
NEEDED: dict[tuple[str, str], frozenset[str]] = {
    ("premoe.dev", "prunedmodels"): frozenset({"get", "list", "watch"}),
    ("premoe.dev", "prunedmodels/status"): frozenset({"patch"}),
    ("premoe.dev", "prunedmodels/finalizers"): frozenset({"update"}),
    ("", "services"): CHILD,
    ("", "serviceaccounts"): CHILD,
    ("", "configmaps"): CHILD,
    ("apps", "deployments"): CHILD,
    ("apps", "controllerrevisions"): CHILD,
    ("batch", "jobs"): CHILD,
    ("networking.k8s.io", "networkpolicies"): CHILD,
    ("policy", "poddisruptionbudgets"): CHILD,
    ("coordination.k8s.io", "leases"): frozenset({"create"}),
    ("", "pods"): frozenset({"list"}),
    ("", "events"): frozenset({"list"}),
    ("events.k8s.io", "events"): frozenset({"create"}),
}
"""(group, resource) → verbs, where PrunedModels are."""
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
SELF_SERVICE = ("authorization.k8s.io", "authentication.k8s.io")
"""Groups in which every ServiceAccount may ask about itself."""


@pytest.fixture
def other_namespace(control_plane: ControlPlane) -> Iterator[str]:
    name = create_namespace(control_plane)
    yield name
    delete_namespace(control_plane, name)


def test_operator_of_all_namespaces(control_plane: ControlPlane, namespace: str, other_namespace: str) -> None:
    install(control_plane, CHART, namespace, values_of("plain"))
    assert rights(control_plane, namespace, other_namespace) == NEEDED
    own = rights(control_plane, namespace, namespace)
    assert own == NEEDED
    uninstall(control_plane, namespace)


def test_operator_of_listed_namespaces(control_plane: ControlPlane, namespace: str, other_namespace: str) -> None:
    install(control_plane, CHART, namespace, values_of("plain") | {"watchNamespaces": [other_namespace]})
    assert rights(control_plane, namespace, other_namespace) == NEEDED
    assert rights(control_plane, namespace, namespace) == {}
    assert rights(control_plane, namespace, "default") == {}
    uninstall(control_plane, namespace)


def test_certificates_only_with_cert_manager(control_plane: ControlPlane, namespace: str) -> None:
    """The Certificates themselves need cert-manager's kinds, so only the role is applied."""
    given = ["--set", "tls.mode=CertManager,tls.issuerRef.name=mesh,objectStore.url=s3://packs"]
    shown = "templates/operator/rbac.yaml"
    text = helm("template", "premoe", str(CHART), "--namespace", namespace, *given, "--show-only", shown)
    control_plane.kubectl("apply", "-f", "-", stdin=text)
    assert rights(control_plane, namespace, "default") == NEEDED | {("cert-manager.io", "certificates"): CHILD}
    control_plane.kubectl("delete", "-f", "-", stdin=text)


def test_two_leases_are_written_and_no_other(control_plane: ControlPlane, namespace: str) -> None:
    """That of the replicas, where the release is, and that of the release, where PrunedModels are."""
    install(control_plane, CHART, namespace, values_of("plain"))
    leases = ("coordination.k8s.io", "leases")
    for where, name, verbs in (
        (namespace, "premoe-operator", {"get", "update", "create"}),
        (namespace, "premoe-release", {"get", "update", "create", "delete"}),
        (namespace, "other", {"create"}),
        ("default", "premoe-operator", {"create"}),
        ("default", "premoe-release", {"get", "update", "create", "delete"}),
    ):
        assert {verb for verb in VERBS if allowed(control_plane, namespace, where, leases, verb, name)} == verbs, name
    uninstall(control_plane, namespace)


def test_the_other_services_may_do_nothing(control_plane: ControlPlane, namespace: str) -> None:
    install(control_plane, CHART, namespace, values_of("plain"))
    for component in ("retrieval", "expert-store", "gateway"):
        assert rights(control_plane, namespace, namespace, account=f"premoe-{component}") == {}
    uninstall(control_plane, namespace)


def test_secrets_are_refused_to_the_operator_itself(control_plane: ControlPlane, namespace: str) -> None:
    """Not by asking what would be allowed: with its own token."""
    install(control_plane, CHART, namespace, values_of("plain"))
    account = control_plane.service_account_kubeconfig(namespace, "premoe-operator")
    for command in (["get", "secrets"], ["create", "secret", "generic", "x"], ["create", "token", "default"]):
        answer = control_plane.kubectl(*command, "-n", namespace, kubeconfig=account, check=False)
        assert "is forbidden" in answer, command
    control_plane.kubectl("get", "deployments", "-n", namespace, kubeconfig=account)
    uninstall(control_plane, namespace)


def rights(
    cluster: ControlPlane, release_namespace: str, namespace: str, *, account: str = "premoe-operator"
) -> dict[tuple[str, str], frozenset[str]]:
    """Everything that the account may do in a namespace, over all resources that the API server knows, and ours."""
    found = {}
    for resource in sorted({*resources(cluster), *NEEDED, ("cert-manager.io", "certificates")}):
        verbs = frozenset(
            verb for verb in VERBS if allowed(cluster, release_namespace, namespace, resource, verb, account=account)
        )
        if verbs:
            found[resource] = verbs
    return found


def resources(cluster: ControlPlane) -> set[tuple[str, str]]:
    """(group, resource) of everything served, subresources too."""
    groups = cluster.get("/apis")
    assert groups is not None
    paths = [("", "/api/v1")] + [
        (group["name"], f"/apis/{group['preferredVersion']['groupVersion']}")
        for group in groups["groups"]
        if group["name"] not in SELF_SERVICE
    ]
    found = set()
    for group, path in paths:
        listed = cluster.get(path)
        for resource in (listed or {}).get("resources") or []:
            found.add((group, resource["name"]))
    return found


def allowed(
    cluster: ControlPlane,
    release_namespace: str,
    namespace: str,
    resource: tuple[str, str],
    verb: str,
    name: str = "",
    *,
    account: str = "premoe-operator",
) -> bool:
    plural, _, subresource = resource[1].partition("/")
    body = {
        "spec": {
            "user": f"system:serviceaccount:{release_namespace}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{release_namespace}", "system:authenticated"],
            "resourceAttributes": {
                "namespace": namespace,
                "verb": verb,
                "group": resource[0],
                "resource": plural,
                "subresource": subresource,
                "name": name,
            },
        }
    }
    answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", json=body)
    return bool(answer.raise_for_status().json()["status"]["allowed"])


def uninstall(cluster: ControlPlane, namespace: str) -> None:
    helm("uninstall", "premoe", "--namespace", namespace, kubeconfig=cluster.kubeconfig)
