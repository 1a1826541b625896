"""The admission policy of podTemplate on a real API server: what is on the list, and who may use it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from support.charts import CHART, CRD_CHART, Object, helm, install, values_of
from support.cluster_fixtures import control_plane, create_namespace, delete_namespace, install_crd
from support.control_plane import ControlPlane
from support.process_group import wait_until

__all__ = ["control_plane"]

pytestmark = pytest.mark.cluster

MODELS = "/apis/premoe.dev/v1alpha1/namespaces/{}/prunedmodels"
ALLOWED = ["spec.dnsPolicy", "spec.containers[premoe-worker].env", "metadata.annotations"]


@pytest.fixture(scope="module")
def released(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace whose release allows some paths, and in which `nobody` may write PrunedModels."""
    namespace = create_namespace(control_plane)
    install_crd(control_plane, (CRD_CHART / "templates" / "prunedmodels.yaml").read_text())
    values = values_of("plain") | {"watchNamespaces": [namespace], "podTemplate": {"allowedPaths": ALLOWED}}
    install(control_plane, CHART, namespace, values)
    role = ["create", "role", "author", "--verb=create,update,get", "--resource=prunedmodels.premoe.dev"]
    control_plane.kubectl(*role, "-n", namespace)
    control_plane.kubectl("create", "rolebinding", "author", "--role=author", "--user=nobody", "-n", namespace)
    # Policies take a moment to reach the admission chain.
    refused = {"spec": {"hostNetwork": True}}
    wait_until(
        lambda: "this release allows" in create(control_plane, namespace, refused, user="admin").text,
        30,
        "the admission policy",
        control_plane.processes,
    )
    yield namespace
    helm("uninstall", "premoe", "--namespace", namespace, kubeconfig=control_plane.kubeconfig)
    delete_namespace(control_plane, namespace)


def test_listed_fields_pass_and_others_are_named(control_plane: ControlPlane, released: str) -> None:
    environment = [{"name": "premoe-worker", "env": [{"name": "A", "value": "b"}]}]
    listed = {"metadata": {"annotations": {"a": "b"}}, "spec": {"dnsPolicy": "Default", "containers": environment}}
    assert create(control_plane, released, listed, user="admin").status_code == 201
    answer = create(control_plane, released, listed | {"spec": {"hostPID": True, "volumes": []}}, user="admin")
    assert answer.status_code == 403
    # The API server goes through a map in no fixed order.
    named = re.search(r"spec\.podTemplate sets (.+); this release allows (.+)", answer.json()["message"])
    assert named is not None
    assert set(named[1].split(", ")) == {"spec.hostPID", "spec.volumes"}
    assert named[2] == "metadata.annotations, spec.containers, spec.dnsPolicy"


def test_a_user_needs_the_verb(control_plane: ControlPlane, released: str) -> None:
    template = {"spec": {"dnsPolicy": "Default"}}
    answer = create(control_plane, released, template, user="nobody")
    assert answer.status_code == 403
    assert "needs the verb use-pod-template on prunedmodels.premoe.dev" in answer.json()["message"]
    assert create(control_plane, released, None, user="nobody").status_code == 201
    # kubectl does not know verbs of others, so the role is written out.
    rules = [{"apiGroups": ["premoe.dev"], "resources": ["prunedmodels"], "verbs": ["use-pod-template"]}]
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{released}/roles"
    control_plane.request("POST", roles, json={"metadata": {"name": "hatch"}, "rules": rules}).raise_for_status()
    control_plane.kubectl("create", "rolebinding", "hatch", "--role=hatch", "--user=nobody", "-n", released)
    wait_for_code(control_plane, released, template, 201)
    control_plane.kubectl("delete", "rolebinding", "hatch", "-n", released)
    wait_for_code(control_plane, released, template, 403)


def test_who_may_not_set_it_may_still_change_other_fields(control_plane: ControlPlane, released: str) -> None:
    created = create(control_plane, released, {"spec": {"dnsPolicy": "Default"}}, user="admin", dry_run=False).json()
    path = f"{MODELS.format(released)}/{created['metadata']['name']}"
    created["spec"]["suspend"] = True
    assert control_plane.request("PUT", path, json=created, user="nobody").status_code == 200
    changed = control_plane.get(path)
    assert changed is not None
    changed["spec"]["podTemplate"] = {"spec": {"dnsPolicy": "ClusterFirst"}}
    assert control_plane.request("PUT", path, json=changed, user="nobody").status_code == 403


def test_other_namespaces_are_left_alone(control_plane: ControlPlane, released: str) -> None:
    """The release serves its own namespace only; another operator may have other rules."""
    assert create(control_plane, "default", {"spec": {"hostPID": True}}, user="admin").status_code == 201


def wait_for_code(cluster: ControlPlane, namespace: str, template: Object, code: int) -> None:
    """Wait until `nobody` gets this answer: authorisation learns of a change a moment later."""
    wait_until(
        lambda: create(cluster, namespace, template, user="nobody").status_code == code,
        30,
        f"answer {code}",
        cluster.processes,
    )


def create(
    cluster: ControlPlane, namespace: str, template: Object | None, *, user: str, dry_run: bool = True
) -> httpx.Response:
    spec: Object = {"model": {"uri": "s3://models/tiny"}, "budget": "2/4"}
    if template is not None:
        spec["podTemplate"] = template
    body = {
        "apiVersion": "premoe.dev/v1alpha1",
        "kind": "PrunedModel",
        "metadata": {"generateName": "chat-"},
        "spec": spec,
    }
    params = {"dryRun": "All"} if dry_run else {}
    return cluster.request("POST", MODELS.format(namespace), json=body, params=params, user=user)
