"""The chart on a real API server: installed, upgraded, rolled back; pods as the `restricted` profile wants them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import httpx
import pytest
from crd import SCHEMA_VERSION
from support.charts import (
    CERT_MANAGER,
    CHART,
    CRD_CHART,
    PROFILES,
    HelmFailed,
    Object,
    helm,
    install,
    merged,
    pod_templates,
    render,
    values_file,
    values_of,
)
from support.cluster_fixtures import control_plane, install_crd, namespace, restricted_namespace
from support.control_plane import ControlPlane
from support.process_group import wait_until

__all__ = ["control_plane", "namespace", "restricted_namespace"]

pytestmark = pytest.mark.cluster

COMPONENTS = ("operator", "retrieval", "expert-store", "gateway")
FOREIGN_KINDS = (
    ("cert-manager.io", "certificates", "Certificate"),
    ("gateway.networking.k8s.io", "httproutes", "HTTPRoute"),
    ("monitoring.coreos.com", "servicemonitors", "ServiceMonitor"),
    ("monitoring.coreos.com", "podmonitors", "PodMonitor"),
    ("monitoring.coreos.com", "prometheusrules", "PrometheusRule"),
)
"""Kinds of other projects that the chart writes; (group, plural, kind)."""


@pytest.fixture
def foreign_kinds(control_plane: ControlPlane) -> Iterator[None]:
    """Stand-ins for the CRDs of cert-manager and the Prometheus operator, which accept anything."""
    made = []
    for group, plural, kind in FOREIGN_KINDS:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        if control_plane.get(f"{path}/{plural}.{group}") is None:
            control_plane.request("POST", path, json=open_definition(group, plural, kind)).raise_for_status()
            made.append(f"{path}/{plural}.{group}")
        wait_until(
            functools.partial(established, control_plane, f"{path}/{plural}.{group}"),
            30,
            plural,
            control_plane.processes,
        )
    yield
    for path in made:
        control_plane.request("DELETE", path)


@pytest.mark.parametrize("profile", ["plain", "secret"])
def test_install_is_accepted_by_the_api_server(
    control_plane: ControlPlane, restricted_namespace: str, profile: str
) -> None:
    install(control_plane, CHART, restricted_namespace, values_file(profile))
    for component in COMPONENTS:
        assert deployment(control_plane, restricted_namespace, component)["spec"]["replicas"] >= 1
    status = helm("status", "premoe", "--namespace", restricted_namespace, kubeconfig=control_plane.kubeconfig)
    assert "STATUS: deployed" in status
    uninstall(control_plane, restricted_namespace)


@pytest.mark.usefixtures("foreign_kinds")
def test_everything_turned_on_is_accepted(control_plane: ControlPlane, restricted_namespace: str) -> None:
    install(control_plane, CHART, restricted_namespace, values_file("full"))
    for path in (
        f"/apis/{CERT_MANAGER}/namespaces/{restricted_namespace}/certificates/premoe-gateway",
        f"/apis/apps/v1/namespaces/{restricted_namespace}/statefulsets/premoe-qdrant",
        f"/apis/networking.k8s.io/v1/namespaces/{restricted_namespace}/ingresses/premoe-gateway",
        f"/apis/gateway.networking.k8s.io/v1/namespaces/{restricted_namespace}/httproutes/premoe-gateway",
        f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/premoe-{restricted_namespace}-pod-template",
    ):
        assert control_plane.get(path) is not None, path
    uninstall(control_plane, restricted_namespace)


def test_without_cert_manager_the_default_says_what_is_missing(control_plane: ControlPlane, namespace: str) -> None:
    values = {"objectStore": {"url": "s3://packs"}}
    with pytest.raises(HelmFailed, match=r"tls\.issuerRef\.name is empty"):
        install(control_plane, CHART, namespace, values)
    assert control_plane.kubectl("get", "deployments,configmaps", "-n", namespace, "-o", "name").split() == [
        "configmap/kube-root-ca.crt"
    ]


@pytest.mark.usefixtures("foreign_kinds")
def test_an_upgrade_does_not_check_roles_that_no_certificate_holds(
    control_plane: ControlPlane, restricted_namespace: str
) -> None:
    """Of a release from before roles: its own pods would be refused until their certificates are renewed."""
    values = values_of("full")
    install(control_plane, CHART, restricted_namespace, values)
    without = '[{"op": "remove", "path": "/spec/uris"}]'
    where = ("certificates.cert-manager.io", "premoe-gateway", "-n", restricted_namespace)
    control_plane.kubectl("patch", *where, "--type", "json", "--patch", without)
    with pytest.raises(HelmFailed, match=r"Certificate premoe-gateway holds no role yet.*set to false first"):
        install(control_plane, CHART, restricted_namespace, values, verb=("upgrade",))
    unchecked = merged(values, {"tls": {"checkRoles": False}})
    install(control_plane, CHART, restricted_namespace, unchecked, verb=("upgrade",), flags=("--force-conflicts",))
    control_plane.kubectl("patch", *where, "--type", "merge", "--patch", '{"spec": {"uris": ["premoe://a/gateway"]}}')
    install(control_plane, CHART, restricted_namespace, values, verb=("upgrade",), flags=("--force-conflicts",))
    uninstall(control_plane, restricted_namespace)


def test_an_older_definition_is_refused(control_plane: ControlPlane, namespace: str) -> None:
    """An API server drops fields that its schema does not know: the operator would see half of a spec."""
    manifest = (CRD_CHART / "templates" / "prunedmodels.yaml").read_text()
    install_crd(control_plane, manifest)
    definition = ("customresourcedefinition", "prunedmodels.premoe.dev", "--overwrite")
    control_plane.kubectl("annotate", *definition, "premoe.dev/schema=0")
    try:
        with pytest.raises(HelmFailed, match=f"has schema 0 and this chart needs {SCHEMA_VERSION}: upgrade"):
            install(control_plane, CHART, namespace, values_file("plain"))
        install(control_plane, CHART, namespace, values_of("plain") | {"checkDefinition": False})
        uninstall(control_plane, namespace)
    finally:
        install_crd(control_plane, manifest)
    install(control_plane, CHART, namespace, values_file("plain"))
    uninstall(control_plane, namespace)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_restricted_namespace_takes_every_pod(
    control_plane: ControlPlane, restricted_namespace: str, profile: str
) -> None:
    """Pods themselves are created (dry run): a Deployment would be accepted and then make no pod."""
    control_plane.kubectl("label", "namespace", restricted_namespace, "pod-security.kubernetes.io/warn=restricted")
    objects = render(CHART, values_file(profile), namespace=restricted_namespace)
    templates = list(pod_templates(objects))
    assert len(templates) >= 7
    for name, template in templates:
        # Accounts and classes of the release are not there in a dry run.
        spec = {
            key: value
            for key, value in template["spec"].items()
            if key not in ("serviceAccountName", "priorityClassName")
        }
        answer = dry_run_pod(control_plane, restricted_namespace, spec)
        assert answer.status_code == 201, f"{name}: {answer.text}"
        assert "warning" not in answer.headers, f"{name}: {answer.headers}"


def test_the_restricted_namespace_refuses_a_pod_that_is_not(
    control_plane: ControlPlane, restricted_namespace: str
) -> None:
    """The control of the test above: the profile is enforced."""
    answer = dry_run_pod(control_plane, restricted_namespace, {"containers": [{"name": "c", "image": "busybox:1"}]})
    assert answer.status_code == 403
    assert "violates PodSecurity" in answer.text


@pytest.mark.parametrize("apply", [[], ["--server-side=false"]], ids=["server-side", "client-side"])
def test_upgrade_and_rollback_keep_the_lease(control_plane: ControlPlane, namespace: str, apply: list[str]) -> None:
    install(control_plane, CHART, namespace, values_file("plain"), flags=apply)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/premoe-operator"
    held = {
        "holderIdentity": "premoe-operator-1",
        "leaseDurationSeconds": 15,
        "renewTime": "2026-01-01T00:00:00.000000Z",
    }
    lease = control_plane.get(path)
    assert lease is not None
    assert lease["spec"] == {}
    control_plane.request("PUT", path, json=lease | {"spec": held}).raise_for_status()
    values = values_of("plain") | {"logLevel": "debug", "commonLabels": {"team": "serving"}}
    flags = apply or ["--server-side=true"]
    install(control_plane, CHART, namespace, values, verb=("upgrade",), flags=flags)
    upgraded = control_plane.get(path)
    assert upgraded is not None
    assert upgraded["spec"] == held
    assert upgraded["metadata"]["labels"]["team"] == "serving"
    helm("rollback", "premoe", "1", "--namespace", namespace, kubeconfig=control_plane.kubeconfig)
    rolled_back = control_plane.get(path)
    assert rolled_back is not None
    assert (rolled_back["spec"], rolled_back["metadata"]["uid"]) == (held, lease["metadata"]["uid"])
    uninstall(control_plane, namespace)


def test_upgrade_with_the_same_values_changes_nothing(control_plane: ControlPlane, namespace: str) -> None:
    install(control_plane, CHART, namespace, values_file("plain"))
    before = specs(control_plane, namespace)
    install(control_plane, CHART, namespace, values_file("plain"), verb=("upgrade",))
    assert specs(control_plane, namespace) == before
    uninstall(control_plane, namespace)


def test_rollback_brings_the_old_settings_back(control_plane: ControlPlane, namespace: str) -> None:
    install(control_plane, CHART, namespace, values_file("plain"))
    before = specs(control_plane, namespace, generation=False)
    changed = values_of("plain") | {"retrieval": {"index": "memory"}, "gateway": {"replicas": 3}}
    install(control_plane, CHART, namespace, changed, verb=("upgrade",))
    assert deployment(control_plane, namespace, "gateway")["spec"]["replicas"] == 3
    assert specs(control_plane, namespace, generation=False) != before
    helm("rollback", "premoe", "--namespace", namespace, kubeconfig=control_plane.kubeconfig)
    assert specs(control_plane, namespace, generation=False) == before
    uninstall(control_plane, namespace)


def test_two_releases_in_two_namespaces_do_not_meet(control_plane: ControlPlane, namespace: str) -> None:
    other = f"{namespace}-b"
    install(control_plane, CHART, namespace, values_file("plain"))
    install(control_plane, CHART, other, values_file("plain"), flags=["--create-namespace"])
    uninstall(control_plane, other)
    assert control_plane.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/premoe-{namespace}") is not None
    uninstall(control_plane, namespace)
    control_plane.request("DELETE", f"/api/v1/namespaces/{other}")


def deployment(cluster: ControlPlane, namespace: str, component: str) -> Object:
    found = cluster.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/premoe-{component}")
    assert found is not None, component
    return found


def specs(cluster: ControlPlane, namespace: str, *, generation: bool = True) -> Object:
    """Templates, replicas and (where asked) UIDs and generations of the Deployments, and data of the ConfigMaps."""
    found: Object = {}
    for component in COMPONENTS:
        obj = deployment(cluster, namespace, component)
        identity = (obj["metadata"]["uid"], obj["metadata"]["generation"]) if generation else None
        config = cluster.get(f"/api/v1/namespaces/{namespace}/configmaps/premoe-{component}")
        assert config is not None
        found[component] = (identity, obj["spec"]["replicas"], obj["spec"]["template"], config["data"])
    return found


def dry_run_pod(cluster: ControlPlane, namespace: str, spec: Object) -> httpx.Response:
    pod = {"metadata": {"name": "probe"}, "spec": spec}
    return cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", json=pod, params={"dryRun": "All"})


def uninstall(cluster: ControlPlane, namespace: str) -> None:
    helm("uninstall", "premoe", "--namespace", namespace, kubeconfig=cluster.kubeconfig)


def established(cluster: ControlPlane, path: str) -> bool:
    conditions = (cluster.get(path) or {}).get("status", {}).get("conditions")
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions or [])


def open_definition(group: str, plural: str, kind: str) -> Object:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        # Groups of Kubernetes' own want it.
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "https://example.com/a-test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "versions": [version],
        },
    }
