"""The PrunedModel definition on a test control plane, and requests about PrunedModels."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.cluster_fixtures import install_crd
from support.control_plane import ControlPlane
from support.process_group import wait_until

MANIFEST = Path(__file__).parents[2] / "charts/premoe-crds/templates/prunedmodels.yaml"
_installed: weakref.WeakSet[ControlPlane] = weakref.WeakSet()
_DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/prunedmodels.premoe.dev"


@pytest.fixture
def definition(control_plane: ControlPlane) -> dict[str, Any]:
    """The definition, installed and established; it stays for the other tests of the run."""
    return install_definition(control_plane)


def install_definition(cluster: ControlPlane) -> dict[str, Any]:
    """Install the chart's manifest, once a control plane, and wait until the API is served."""
    if cluster not in _installed:
        install_crd(cluster, MANIFEST.read_text(encoding="utf-8"))
        # Established comes a moment before the paths are there.
        wait_until(lambda: _served(cluster), 30, "the PrunedModel API", cluster.processes)
        _installed.add(cluster)
    found = cluster.get(_DEFINITION)
    assert found is not None
    return found


def create(
    cluster: ControlPlane, namespace: str, spec: Any, *, name: str = "model", dry_run: bool = False
) -> httpx.Response:
    """POST a PrunedModel; the answer as it is."""
    body = {
        "apiVersion": "premoe.dev/v1alpha1",
        "kind": "PrunedModel",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    options: dict[str, Any] = {"params": {"dryRun": "All"}} if dry_run else {}
    return cluster.request("POST", models_path(namespace), json=body, **options)


def models_path(namespace: str, name: str = "") -> str:
    path = f"/apis/premoe.dev/v1alpha1/namespaces/{namespace}/prunedmodels"
    return f"{path}/{name}" if name else path


def apply_child(cluster: ControlPlane, child: Mapping[str, Any], *, dry_run: bool = True) -> httpx.Response:
    """Server-side apply, strict about unknown fields."""
    group, plural = _API[child["kind"]]
    metadata = child["metadata"]
    return cluster.request(
        "PATCH",
        f"/{group}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}",
        params={
            "fieldManager": "premoe-operator",
            "fieldValidation": "Strict",
            **({"dryRun": "All"} if dry_run else {}),
        },
        headers={"Content-Type": "application/apply-patch+yaml"},
        json=child,
    )


_API = {
    "ConfigMap": ("api/v1", "configmaps"),
    "ControllerRevision": ("apis/apps/v1", "controllerrevisions"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "Job": ("apis/batch/v1", "jobs"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "Service": ("api/v1", "services"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
}


def _served(cluster: ControlPlane) -> bool:
    return cluster.request("GET", models_path("default")).status_code == 200
