"""What others change on children is put right; what they add to fields of their own stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.cluster_fixtures import control_plane, create_namespace, delete_namespace
from support.control_plane import ControlPlane
from support.operator_process import Json, Kubelet, Site, make_site, path, pruned_model, running_operator, wait

__all__ = ["control_plane"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TASK = {"name": "addition", "calibration": {"configMap": {"name": "prompts", "key": "addition.jsonl"}}}


@pytest.fixture(scope="module")
def site(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A PrunedModel with all children and ready workers; its operator runs."""
    namespace = create_namespace(control_plane, "drift")
    site = make_site(control_plane, namespace, tmp_path_factory.mktemp("drift"))
    kubelet = Kubelet(site)
    with running_operator(site):
        site.create("configmaps", {"metadata": {"name": "prompts"}, "data": {"addition.jsonl": '{"prompt": "1+1="}\n'}})
        site.create("prunedmodels", pruned_model("chat", patterns={"tasks": [TASK]}))
        kubelet.pack("chat")
        kubelet.profile("chat", 1)
        kubelet.serve("chat")
        site.wait_for("chat", "Ready", "True")
        yield site
    delete_namespace(control_plane, namespace)


CHILDREN: dict[str, tuple[str, str, Json]] = {
    "service": ("services", "chat-worker", {"spec": {"selector": {"a": "b"}}}),
    "account": ("serviceaccounts", "chat-worker", {"metadata": {"labels": {"app.kubernetes.io/component": "x"}}}),
    "residency": ("configmaps", "chat-residency", {"data": {"residency.json": "{}"}}),
    "tasks": ("configmaps", "chat-tasks", {"data": {"tasks.json": "[]"}}),
    "policy": ("networkpolicies", "chat-worker", {"spec": {"ingress": [{}]}}),
    "job-policy": ("networkpolicies", "chat-jobs", {"spec": {"egress": [{}]}}),
    "budget": ("poddisruptionbudgets", "chat-worker", {"spec": {"maxUnavailable": 7}}),
    "deployment": ("deployments", "chat-worker", {"spec": {"replicas": 3, "progressDeadlineSeconds": 61}}),
    "revision": ("controllerrevisions", "", {"metadata": {"labels": {"premoe.dev/spec-hash": "x"}}}),
    "job": ("jobs", "", {"metadata": {"labels": {"app.kubernetes.io/component": "x"}}}),
}


def find(site: Site, child: str) -> Json:
    """The child; those with a hash in their name by their owner."""
    plural, name, _ = CHILDREN[child]
    if name:
        found = site.get(plural, name)
        assert found is not None
        return found
    own = [obj for obj in site.list(plural) if obj["metadata"]["name"].startswith(("chat-pack-", "chat-"))]
    return min(own, key=lambda obj: (not obj["metadata"]["name"].startswith("chat-pack-"), obj["metadata"]["name"]))


def essence(obj: Json) -> Json:
    """What the operator wants of a child."""
    metadata = obj["metadata"]
    owned = {name: value for name, value in obj.items() if name in ("spec", "data")}
    if "completions" in owned.get("spec", {}):  # a Job's selector names its uid
        owned["spec"] = {name: value for name, value in owned["spec"].items() if name != "selector"}
    owners = [{**owner} for owner in metadata.get("ownerReferences", [])]
    labels = {name: value for name, value in metadata.get("labels", {}).items() if "example.com" not in name}
    return {**_without_cluster_values(owned), "labels": labels, "owners": owners}


def _without_cluster_values(value: Any) -> Any:
    if isinstance(value, dict):
        given = ("clusterIP", "clusterIPs", "controller-uid", "batch.kubernetes.io/controller-uid")
        return {name: _without_cluster_values(entry) for name, entry in value.items() if name not in given}
    if isinstance(value, list) and "--expect" in value:  # a Job that is made again knows what the pack must come out as
        value = value[: value.index("--expect")]
    return [_without_cluster_values(entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.parametrize("drift", ["delete", "change", "strip-label", "strip-owner"])
def test_drift_is_repaired(site: Site, child: str, drift: str) -> None:
    plural, _, change = CHILDREN[child]
    before = find(site, child)
    name = before["metadata"]["name"]
    where = path(site.namespace, plural, name)
    if drift == "delete":
        site.delete(plural, name)
        if plural == "jobs":  # the Job runs again, and says the same
            Kubelet(site).pack("chat")
        wait(
            lambda: _uid(site, where) not in ("", before["metadata"]["uid"]), 60, lambda: f"{where} was not made again"
        )
    else:
        foreign = {"metadata": {"labels": {"example.com/team": "a"}, "annotations": {"example.com/note": drift}}}
        site.patch(plural, name, foreign)
        site.patch(plural, name, _patch(change, drift))
    wait(
        lambda: (obj := site.cluster.get(where)) is not None and essence(obj) == essence(before),
        60,
        lambda: f"{where} was not repaired: {site.cluster.get(where)} instead of {before}",
    )
    if drift != "delete":
        after = find(site, child)
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["metadata"]["labels"]["example.com/team"] == "a"
        assert after["metadata"]["annotations"]["example.com/note"] == drift


def test_a_repair_ends(site: Site) -> None:
    """After all that, the operator writes nothing more."""
    Kubelet(site).serve("chat")
    site.wait_for("chat", "Ready", "True")
    versions = _versions(site)
    wait(lambda: True, 1, str)
    assert _versions(site) == versions


def _patch(change: Json, drift: str) -> Json:
    if drift == "change":
        return change
    if drift == "strip-label":
        return {"metadata": {"labels": {"premoe.dev/model": None}}}
    return {"metadata": {"ownerReferences": None}}


def _uid(site: Site, where: str) -> str:
    return str((site.cluster.get(where) or {}).get("metadata", {}).get("uid", ""))


def _versions(site: Site) -> dict[str, str]:
    return {child: find(site, child)["metadata"]["resourceVersion"] for child in CHILDREN}
