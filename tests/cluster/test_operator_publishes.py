"""Workers of other namespaces in a ConfigMap of the release's, on a real API server with the chart's own rights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import control_plane, create_namespace, delete_namespace, namespace
from support.control_plane import ControlPlane
from support.operator_fixtures import site
from support.operator_process import Site, make_site, pruned_model, running_operator, wait

__all__ = ["control_plane", "namespace", "site"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

WORKERS = "op-gateway-workers"
"""As the chart names it in a release called op."""


@pytest.fixture
def release(control_plane: ControlPlane, site: Site, tmp_path: Path) -> Iterator[Site]:
    """A release in a namespace of its own, which watches that of ``site``."""
    name = create_namespace(control_plane, "release")
    folder = tmp_path / "release"
    folder.mkdir()
    made = make_site(control_plane, name, folder, watch=site.namespace)
    made.create("configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": WORKERS}})
    yield made
    delete_namespace(control_plane, name)


def published(release: Site) -> list[str] | None:
    text = ((release.get("configmaps", WORKERS) or {}).get("data") or {}).get("workers")
    return None if text is None else text.splitlines()


def test_models_of_another_namespace_come_and_go_and_a_change_by_hand_does_not_stay(site: Site, release: Site) -> None:
    def target(name: str) -> str:
        return f"dns:///{name}-worker.{site.namespace}.svc:50051"

    def said() -> str:
        return str(published(release))

    watching: dict[str, Any] = {"watch_namespaces": site.namespace, "workers_config_map": WORKERS}
    with running_operator(release, **watching):
        wait(lambda: published(release) == [], 60, said)
        for name in ("one", "two"):
            site.create("prunedmodels", pruned_model(name))
        wait(lambda: published(release) == [target("one"), target("two")], 60, said)
        site.delete("prunedmodels", "one")
        wait(lambda: published(release) == [target("two")], 60, said)
    release.patch("configmaps", WORKERS, {"data": {"workers": "dns:///elsewhere:1\n"}})
    with running_operator(release, **watching):
        wait(lambda: published(release) == [target("two")], 60, said)


def test_the_operator_may_write_that_config_map_and_no_other(release: Site) -> None:
    account = f"system:serviceaccount:{release.namespace}:op-operator"

    def may(verb: str, name: str) -> bool:
        asked = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": account,
                "resourceAttributes": {
                    "namespace": release.namespace,
                    "verb": verb,
                    "resource": "configmaps",
                    "name": name,
                },
            },
        }
        answer = release.cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", json=asked)
        return bool(answer.json()["status"]["allowed"])

    assert {verb for verb in ("get", "list", "watch", "create", "update", "patch", "delete") if may(verb, WORKERS)} == {
        "get",
        "patch",
    }
    assert not any(may(verb, "other") for verb in ("get", "patch", "create"))
