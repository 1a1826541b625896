"""Two releases that watch one namespace, on a real API server with the chart's own rights: no fight, one condition."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import control_plane, create_namespace, delete_namespace, namespace
from support.control_plane import ControlPlane
from support.operator_fixtures import site
from support.operator_process import Kubelet, Site, make_site, pruned_model, running_operator, wait

__all__ = ["control_plane", "namespace", "site"]

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def other_site(control_plane: ControlPlane, site: Site, tmp_path: Path) -> Iterator[Site]:
    """Another release, in a namespace of its own, that watches the first one's namespace and has another image."""
    name = create_namespace(control_plane, "other")
    folder = tmp_path / "other"
    folder.mkdir()
    values = ["worker.image.tag=other"]
    yield make_site(control_plane, name, folder, watch=site.namespace, values=values)
    delete_namespace(control_plane, name)


def claim(site: Site) -> str:
    found = site.get("leases", "premoe-release") or {}
    return str(found.get("spec", {}).get("holderIdentity", ""))


def watched(other: Site, site: Site) -> dict[str, Any]:
    return {"namespace": other.namespace, "watch_namespaces": site.namespace, "release_lease_s": 6}


def test_a_namespace_gets_another_model_and_the_claim_another_owner(site: Site) -> None:
    """The API server lets only who may delete an object change its owners."""
    with running_operator(site, release_lease_s=6):
        site.create("prunedmodels", pruned_model("one"))
        wait(lambda: owners(site) == {"one"}, 60, lambda: str(owners(site)))
        site.create("prunedmodels", pruned_model("two"))
        wait(lambda: owners(site) == {"one", "two"}, 60, lambda: str(owners(site)))
        site.wait_for("two", "SpecAccepted", "True")


def owners(site: Site) -> set[str]:
    found = site.get("leases", "premoe-release") or {}
    return {owner["name"] for owner in found.get("metadata", {}).get("ownerReferences", [])}


def test_one_release_serves_and_the_other_says_so_once(site: Site, other_site: Site) -> None:
    kubelet = Kubelet(site)
    with running_operator(site, release_lease_s=6) as first:
        site.create("prunedmodels", pruned_model("chat"))
        kubelet.pack("chat")
        kubelet.serve("chat")
        site.wait_for("chat", "Ready", "True")
        assert claim(site) == site.namespace
        with running_operator(other_site, identity="other", **watched(other_site, site)):
            wait(lambda: bool(site.condition("chat", "ReleaseConflict")), 60, lambda: str(site.model("chat")))
            found = site.condition("chat", "ReleaseConflict")
            assert (found["status"], found["reason"]) == ("True", "HeldByOtherRelease")
            assert site.namespace in found["message"]
            assert site.condition("chat", "Ready")["status"] == "True"
            before = versions(site)
            site.patch("prunedmodels", "chat", {"metadata": {"labels": {"touched": "yes"}}})
            time.sleep(8)  # longer than the Lease: both renew, and nobody writes anything
            after = versions(site)
            assert {name for name in before if before[name] != after[name]} == {"PrunedModel/chat"}
            assert int(after["PrunedModel/chat"]) == int(site.model("chat")["metadata"]["resourceVersion"])
            assert claim(site) == site.namespace
            # The release that served is gone: the other takes over, and takes its own word back.
            assert first.stop() == 0
            wait(lambda: claim(site) == other_site.namespace, 60, lambda: claim(site))
            wait(lambda: not site.condition("chat", "ReleaseConflict"), 60, lambda: str(site.model("chat")))
            site.patch("prunedmodels", "chat", {"spec": {"workers": {"replicas": 2}}})
            kubelet.serve("chat", 2)
            site.wait_for("chat", "Ready", "True")
    site.delete("prunedmodels", "chat")
    wait(lambda: site.get("leases", "premoe-release") is None, 60, lambda: "the Lease is still there")


def versions(site: Site) -> dict[str, str]:
    """Resource versions of the model and its children."""
    plurals = (
        "prunedmodels",
        "deployments",
        "services",
        "jobs",
        "configmaps",
        "networkpolicies",
        "controllerrevisions",
    )
    found = [(plural, obj) for plural in plurals for obj in site.list(plural)]
    names = {"prunedmodels": "PrunedModel"}
    return {
        f"{names.get(plural, plural)}/{obj['metadata']['name']}": obj["metadata"]["resourceVersion"]
        for plural, obj in found
    }
