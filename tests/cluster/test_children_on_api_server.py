"""Children on a real API server: applied twice they do not change, and their pods pass the `restricted` standard."""

from __future__ import annotations

import copy
from typing import Any

import httpx
import pytest
from premoe_operator.children import Owner
from support.cluster_fixtures import control_plane, namespace, restricted_namespace
from support.control_plane import ControlPlane
from support.pruned_models import FULL, OWNER, SMALLEST, Document, changed, children_of, inputs_of
from support.prunedmodel_definition import apply_child

__all__ = ["control_plane", "namespace", "restricted_namespace"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ODD_QUANTITIES = {
    "workers.resources": {
        "requests": {"cpu": "1000m", "memory": "0.5Gi"},
        "limits": {"cpu": "1.0", "memory": "1024Mi"},
    },
    "workers.scratchSize": "1024Mi",
    "suspend": True,
}
"""Kubernetes writes these back in another way."""


@pytest.mark.parametrize("spec", [SMALLEST, changed(FULL, ODD_QUANTITIES)], ids=["smallest", "full"])
def test_a_child_applied_twice_does_not_change(control_plane: ControlPlane, namespace: str, spec: Document) -> None:
    for child in owned_by_nobody(spec, namespace):
        first, second = (apply_child(control_plane, child, dry_run=False) for _ in range(2))
        assert (first.status_code, second.status_code) == (201, 200), first.text
        before, after = (desired_part(answer.json()) for answer in (first, second))
        assert before == after, child["kind"]


def desired_part(found: dict[str, Any]) -> dict[str, Any]:
    """What is not a controller's: everything but status and when something was last written."""
    written = ("resourceVersion", "managedFields", "annotations")
    metadata = {key: value for key, value in found["metadata"].items() if key not in written}
    return {**found, "metadata": metadata, "status": None}


def test_pods_pass_the_restricted_standard_and_a_plain_one_does_not(
    control_plane: ControlPlane, restricted_namespace: str
) -> None:
    # Classes would have to exist; what matters here is everything else that a full spec adds.
    places = ("workers.placement", "jobs.placement", "jobs.pack.placement")
    classes = ("priorityClassName", "runtimeClassName")
    spec = changed(FULL, {f"{place}.{name}": None for place in places for name in classes})
    children = owned_by_nobody(spec, restricted_namespace)
    accounts = [child for child in children if child["kind"] == "ServiceAccount"]
    for account in accounts:
        assert apply_child(control_plane, account, dry_run=False).status_code == 201
    templates = [child["spec"]["template"] for child in children if child["kind"] in ("Deployment", "Job")]
    assert len(templates) == 4
    for template in templates:
        answer = create_pod(control_plane, restricted_namespace, template)
        assert answer.status_code == 201, answer.text
        assert "warning" not in answer.headers
    loose = copy.deepcopy(templates[0])
    del loose["spec"]["containers"][0]["securityContext"]
    answer = create_pod(control_plane, restricted_namespace, loose)
    assert answer.status_code == 403
    assert 'violates PodSecurity "restricted' in answer.json()["message"]


def owned_by_nobody(spec: Document, namespace: str) -> list[dict[str, Any]]:
    """Children that garbage collection leaves alone; without Certificates, whose API is not on this server."""
    owner = Owner(OWNER.name, namespace, OWNER.uid, OWNER.generation)
    children = [child for child in children_of(inputs_of(spec, owner=owner)) if child["kind"] != "Certificate"]
    for child in children:
        del child["metadata"]["ownerReferences"]
    return children


def create_pod(cluster: ControlPlane, namespace: str, template: dict[str, Any]) -> httpx.Response:
    metadata = {**template["metadata"], "name": "tried"}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    return cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", json=body, params={"dryRun": "All"})
