"""The operator on a real API server: the way from a PrunedModel to serving workers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from crd import definition
from premoe_operator.api.resources import GROUP, VERSION
from premoe_operator.run.definition import check_definition
from support.cluster_fixtures import control_plane, create_namespace, delete_namespace, install_crd, namespace
from support.control_plane import ControlPlane
from support.operator_fixtures import site
from support.operator_process import (
    CRD,
    MODEL_ID,
    PATTERN_SET,
    Json,
    Kubelet,
    Site,
    make_site,
    pruned_model,
    running_operator,
    wait,
)

from premoe_runtime.formats.errors import InvalidInput

__all__ = ["control_plane", "namespace", "site"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


CERTIFICATES: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "certificates.cert-manager.io"},
    "spec": {
        "group": "cert-manager.io",
        "scope": "Namespaced",
        "names": {"kind": "Certificate", "plural": "certificates", "singular": "certificate"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
"""As much of cert-manager as has to be there for its objects to be taken."""


def test_packs_then_starts_workers_then_is_ready(site: Site) -> None:
    kubelet = Kubelet(site)
    with running_operator(site):
        site.create("prunedmodels", pruned_model("chat", workers={"replicas": 2}))
        site.wait_for("chat", "ArtifactsReady", "False", "Unschedulable")
        assert site.condition("chat", "Available")["status"] == "False"
        kubelet.pack("chat")
        site.wait_for("chat", "ArtifactsReady", "True", "Packed")
        kubelet.serve("chat", 2)
        site.wait_for("chat", "Ready", "True", "AllReady")
    status = site.model("chat")["status"]
    assert status["resolved"]["modelId"] == MODEL_ID
    assert status["workersSummary"] == "2/2"


def test_a_definition_that_is_older_than_the_operator_is_refused(site: Site) -> None:
    """An API server would drop the fields that it does not know."""

    def is_old() -> bool:
        try:
            check_definition(site.cluster.get(f"/openapi/v3/apis/{GROUP}/{VERSION}") or {})
        except InvalidInput:
            return True
        return False

    older = definition()
    del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["preload"]
    try:
        install_crd(site.cluster, yaml.safe_dump(older))
        wait(is_old, 60, lambda: "the API server still publishes the new definition")
        with (
            pytest.raises(AssertionError, match=r"does not know status\.preload: upgrade .* premoe-crds first"),
            running_operator(site),
        ):
            pass
    finally:
        install_crd(site.cluster, CRD.read_text())
        wait(lambda: not is_old(), 60, lambda: "the API server still publishes the old definition")
    with running_operator(site):
        site.create("prunedmodels", pruned_model("chat"))
        site.wait_for("chat", "SpecAccepted", "True")


def test_tasks_are_profiled_one_by_one_and_then_built(site: Site) -> None:
    kubelet = Kubelet(site)
    tasks = [
        {"name": name, "calibration": {"configMap": {"name": "prompts", "key": f"{name}.jsonl"}}}
        for name in ("addition", "c", "sql")
    ]
    site.create(
        "configmaps", {"metadata": {"name": "prompts"}, "data": {f"{task['name']}.jsonl": "{}" for task in tasks}}
    )
    with running_operator(site):
        site.create("prunedmodels", pruned_model("chat", patterns={"tasks": tasks}))
        kubelet.pack("chat")
        kubelet.end(kubelet.wait_for_pods("chat", "profile")[0], {"task": "addition", "profile": "blake3:00"})
        wait(
            lambda: site.model("chat")["status"]["patternsSummary"] == "1/3",
            60,
            lambda: str(site.model("chat")["status"]),
        )
        assert site.condition("chat", "PatternsReady")["reason"] in ("Profiling", "Unschedulable")
        kubelet.profile("chat", 2)
        site.wait_for("chat", "PatternsReady", "True", "Built")
        kubelet.serve("chat")
        site.wait_for("chat", "Ready", "True")
    assert site.model("chat")["status"]["resolved"]["patternSet"] == PATTERN_SET


def test_the_status_tells_what_workers_keep_resident(site: Site) -> None:
    host = f"chat-worker.{site.namespace}.svc"
    kubelet = Kubelet(site)

    def told(*expected: object) -> None:
        wait(
            lambda: (
                site.model("chat")["status"].get("preload")
                == dict(zip(("tasks", "resident", "workers", "message"), expected, strict=True))
            ),
            60,
            lambda: str(site.model("chat")["status"]),
        )

    with running_operator(site):
        site.create("prunedmodels", pruned_model("chat", patterns={"preload": ["sql", "c"]}))
        kubelet.pack("chat")
        kubelet.serve("chat")
        site.wait_for("chat", "Ready", "True")
        told(2, 0, 1, "")  # workers have not read their list yet, so the operator asks again soon
        site.set_preloads(
            host, {"wanted": ["sql", "c"], "done": ["sql"], "problem": "8 slots a layer hold 1 of 2 tasks"}
        )
        told(2, 1, 1, "8 slots a layer hold 1 of 2 tasks")
        site.set_preloads(host, {"wanted": ["sql"], "done": ["sql"], "problem": ""})
        site.patch("prunedmodels", "chat", {"spec": {"patterns": {"preload": ["sql"]}}})
        told(1, 1, 1, "")
        site.patch("prunedmodels", "chat", {"spec": {"patterns": {"preload": []}}})
        wait(lambda: "preload" not in site.model("chat")["status"], 60, lambda: str(site.model("chat")["status"]))


def test_all_namespaces_are_served_when_none_is_named(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    # Namespaces of tests before may still be going, with models of the usual name in them.
    site = make_site(control_plane, namespace, tmp_path, watch="")
    other = create_namespace(control_plane, "other")
    elsewhere = Site(control_plane, other, tmp_path, site.kubeconfig)
    try:
        with running_operator(site, watch_namespaces=""):
            site.create("prunedmodels", pruned_model("everywhere"))
            site.wait_for("everywhere", "SpecAccepted", "True")
            time.sleep(1.1)  # creation times have seconds
            elsewhere.create("prunedmodels", pruned_model("everywhere"))
            # One gateway serves all namespaces.
            elsewhere.wait_for("everywhere", "SpecAccepted", "False", "ServedNameConflict")
            source = pruned_model("everywhere")["spec"]["model"]
            elsewhere.create("prunedmodels", pruned_model("code", model={**source, "servedName": "code"}))
            elsewhere.wait_for("code", "SpecAccepted", "True")
    finally:
        control_plane.kubectl("delete", "clusterrole,clusterrolebinding", "-l", "app.kubernetes.io/instance=op")
        delete_namespace(control_plane, other)


def test_certificates_are_asked_for_waited_for_and_repaired(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    install_crd(control_plane, yaml.safe_dump(CERTIFICATES))
    values = ("tls.mode=CertManager", "tls.issuerRef.name=mesh")
    site = make_site(control_plane, namespace, tmp_path, values=values)
    kubelet = Kubelet(site)
    with running_operator(site, watch_certificates="true"):
        site.create("prunedmodels", pruned_model("chat"))
        site.wait_for("chat", "CertificateReady", "False", "Issuing")
        kubelet.pack("chat")
        kubelet.serve("chat")
        site.wait_for("chat", "Ready", "False", "Issuing")
        refused = {"type": "Ready", "status": "False", "reason": "Denied", "message": "not by this issuer"}
        site.patch("certificates", "chat-worker", {"status": {"conditions": [refused]}}, "status")
        found = site.wait_for("chat", "CertificateReady", "False", "CertificateNotIssued")
        assert found["message"] == "not by this issuer"
        issued = {"type": "Ready", "status": "True", "reason": "Ready"}
        site.patch("certificates", "chat-worker", {"status": {"conditions": [issued]}}, "status")
        site.wait_for("chat", "Ready", "True")
        site.patch("certificates", "chat-worker", {"spec": {"secretName": "other"}})
        wait(
            lambda: (site.get("certificates", "chat-worker") or {})["spec"]["secretName"] == "chat-worker-tls",
            60,
            lambda: str(site.get("certificates", "chat-worker")),
        )


@pytest.mark.slow
def test_certificates_without_a_watch_and_without_their_kind(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """A PrunedModel may name an issuer although the release has none: said, not crashed on."""
    site = make_site(control_plane, namespace, tmp_path)
    with running_operator(site):
        tls = {"mode": "Mutual", "issuerRef": {"name": "mesh"}}
        site.create("prunedmodels", pruned_model("chat", access={"tls": tls}))
        found = site.wait_for("chat", "ChildrenApplied", "False", "RefusedByApi")
        assert found["message"].startswith("Certificate chat-worker: ")
        assert site.get("services", "chat-worker") is not None
