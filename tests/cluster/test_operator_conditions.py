"""Every bad input ends in its condition, and what was running keeps running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster_fixtures import control_plane, create_namespace, delete_namespace, namespace
from support.control_plane import ControlPlane
from support.operator_process import (
    FACTS,
    MODEL_ID,
    PATTERN_SET,
    Json,
    Kubelet,
    Site,
    make_site,
    path,
    pruned_model,
    running_operator,
    wait,
)

__all__ = ["control_plane", "namespace"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

HUB = {"uri": "hf://premoe/tiny-moe", "revision": "0" * 40}
TASK = {"name": "addition", "calibration": {"configMap": {"name": "prompts", "key": "addition.jsonl"}}}


@pytest.fixture(scope="module")
def site(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A namespace with a running operator, which all tests share."""
    name = create_namespace(control_plane, "conditions")
    site = make_site(control_plane, name, tmp_path_factory.mktemp("conditions"))
    with running_operator(site):
        yield site
    delete_namespace(control_plane, name)


def serving_model(site: Site, name: str, **spec: Any) -> Json:
    """A PrunedModel that is Ready; returns what must not change."""
    kubelet = Kubelet(site)
    site.create("prunedmodels", pruned_model(name, **spec))
    kubelet.pack(name)
    kubelet.serve(name)
    site.wait_for(name, "Ready", "True")
    return running(site, name)


def running(site: Site, name: str) -> Json:
    """Uids of what serves, and its template."""
    deployment = site.get("deployments", f"{name}-worker")
    assert deployment is not None
    pods = sorted(pod["metadata"]["uid"] for pod in Kubelet(site).pods(name, "worker"))
    return {"deployment": deployment["metadata"]["uid"], "template": deployment["spec"]["template"], "pods": pods}


def test_unknown_revision(site: Site) -> None:
    site.create("prunedmodels", pruned_model("revision"))
    kubelet = Kubelet(site)
    words = {"reason": "SOURCE_NOT_FOUND", "message": "hf://premoe/tiny-moe has no revision 0123"}
    kubelet.end(kubelet.wait_for_pods("revision", "pack")[0], words, exit_code=3)
    found = site.wait_for("revision", "ArtifactsReady", "False", "PackFailed")
    assert found["message"] == words["message"]
    assert site.condition("revision", "Ready")["reason"] == "PackFailed"
    failure = site.model("revision")["status"]["lastFailure"]
    assert (failure["reason"], failure["exitCode"]) == ("SOURCE_NOT_FOUND", 3)
    assert failure["pod"].startswith("revision-pack-")
    site.patch("prunedmodels", "revision", {"metadata": {"annotations": {"premoe.dev/retry": "1"}}})
    kubelet.pack("revision")
    site.wait_for("revision", "ArtifactsReady", "True")


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("scheme", {"model": {"uri": "http://example.com/model"}}, "uri"),
        ("n" * 41, {}, "name"),
    ],
)
def test_refused_by_the_api_server(site: Site, name: str, spec: Json, message: str) -> None:
    response = site.cluster.request("POST", path(site.namespace, "prunedmodels"), json=pruned_model(name, **spec))
    assert response.status_code == 422
    assert message in response.json()["message"]


def test_a_pack_job_that_dies_half_way_is_tried_again(site: Site) -> None:
    site.create("prunedmodels", pruned_model("dies"))
    kubelet = Kubelet(site)
    first = kubelet.wait_for_pods("dies", "pack")[0]
    kubelet.end(first, "", exit_code=137)
    wait(
        lambda: (
            [pod for pod in kubelet.open_pods("dies", "pack") if pod["metadata"]["uid"] != first["metadata"]["uid"]]
            != []
        ),
        60,
        lambda: "no second pod of the pack Job",
    )
    kubelet.pack("dies")
    site.wait_for("dies", "ArtifactsReady", "True", "Packed")
    assert len(site.list("jobs", "premoe.dev/model=dies")) == 1


def test_a_webhook_that_is_down_holds_one_child_up_and_no_other(site: Site) -> None:
    budgets = {"apiGroups": ["policy"], "apiVersions": ["v1"], "resources": ["poddisruptionbudgets"]}
    down = {
        "name": "down.premoe.test",
        "clientConfig": {"service": {"name": "nobody", "namespace": site.namespace}},
        "rules": [{**budgets, "operations": ["CREATE"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": site.namespace}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    name = f"down-{site.namespace}"
    body = {"metadata": {"name": name}, "webhooks": [down]}
    assert site.cluster.request("POST", hooks, json=body).status_code == 201
    kubelet = Kubelet(site)
    try:
        wait_until_hooked(site)
        site.create("prunedmodels", pruned_model("hooked"))
        found = site.wait_for("hooked", "ChildrenApplied", "False", "WriteFailed")
        assert found["message"].startswith("PodDisruptionBudget hooked-worker: ")
        assert "down.premoe.test" in found["message"]
        kubelet.pack("hooked")
        kubelet.serve("hooked")
        site.wait_for("hooked", "Available", "True")
    finally:
        site.cluster.request("DELETE", f"{hooks}/{name}")
    site.wait_for("hooked", "Ready", "True", timeout_s=150)


def wait_until_hooked(site: Site) -> None:
    """The API server reads its list of webhooks a moment after it is written."""
    probe = {"metadata": {"name": "probe"}, "spec": {"selector": {"matchLabels": {"app": "nobody"}}}}

    def refused() -> bool:
        where = f"{path(site.namespace, 'poddisruptionbudgets')}?dryRun=All"
        return bool(site.cluster.request("POST", where, json=probe).status_code == 500)

    wait(refused, 30, lambda: "the webhook is not called")


def test_budget_impossible_for_the_model_keeps_what_runs(site: Site) -> None:
    before = serving_model(site, "budget")
    site.patch("prunedmodels", "budget", {"spec": {"budget": "4/32"}})
    found = site.wait_for("budget", "SpecAccepted", "False", "BudgetImpossible")
    assert "has 16" in found["message"]
    assert site.condition("budget", "Ready")["status"] == "False"
    assert site.condition("budget", "Available")["status"] == "True"
    assert running(site, "budget") == before
    site.patch("prunedmodels", "budget", {"spec": {"budget": "4/16"}})
    site.wait_for("budget", "SpecAccepted", "True")


def test_two_models_with_one_served_name(site: Site) -> None:
    source = pruned_model("x")["spec"]["model"]
    before = serving_model(site, "older", model={**source, "servedName": "shared"})
    time.sleep(1.1)  # creation times have seconds
    site.create("prunedmodels", pruned_model("younger", model={**source, "servedName": "shared"}))
    found = site.wait_for("younger", "SpecAccepted", "False", "ServedNameConflict")
    assert f"{site.namespace}/older" in found["message"]
    assert site.list("jobs", "premoe.dev/model=younger") == []
    assert running(site, "older") == before
    assert site.condition("older", "Ready")["status"] == "True"
    site.delete("prunedmodels", "older")
    site.wait_for("younger", "SpecAccepted", "True")


def test_two_models_that_want_different_patterns_of_the_same_weights(site: Site) -> None:
    kubelet = Kubelet(site)
    site.create("configmaps", {"metadata": {"name": "pair"}, "data": {"one.jsonl": "{}", "two.jsonl": "{}"}})
    for name, key in (("holds", "one.jsonl"), ("waits", "two.jsonl")):
        task = {"name": "same-name", "calibration": {"configMap": {"name": "pair", "key": key}}}
        site.create("prunedmodels", pruned_model(name, patterns={"tasks": [task]}))
        kubelet.pack(name)
        if name == "holds":
            kubelet.profile(name, tasks=1)
            kubelet.serve(name)
            site.wait_for(name, "Ready", "True")
            time.sleep(1.1)  # creation times have seconds
    kubelet.end(kubelet.wait_for_pods("waits", "profile")[0], {"task": "same-name", "profile": "blake3:00"})
    found = site.wait_for("waits", "PatternsReady", "False", "PatternSetConflict")
    assert f"{site.namespace}/holds is older" in found["message"]
    assert kubelet.pods("waits", "patterns") == []
    assert site.condition("holds", "Ready")["status"] == "True"
    site.delete("prunedmodels", "holds")
    kubelet.end(kubelet.wait_for_pods("waits", "patterns")[0], {"patternSet": PATTERN_SET})
    site.wait_for("waits", "PatternsReady", "True", "Built")
    site.delete("prunedmodels", "waits")


def test_an_image_that_cannot_be_pulled_keeps_the_old_worker(site: Site) -> None:
    before = serving_model(site, "image")
    site.patch("prunedmodels", "image", {"spec": {"engine": {"image": "registry.example/nothing:1"}}})
    kubelet = Kubelet(site)
    workers = kubelet.wait_for_pods("image", "worker", 2)
    new = next(pod for pod in workers if pod["metadata"]["uid"] not in before["pods"])
    kubelet.wait_reason(new, "ImagePullBackOff", "Back-off pulling image")
    found = site.wait_for("image", "Ready", "False", "ImagePullFailed")
    assert "registry.example/nothing:1" in found["message"]
    assert site.condition("image", "Available")["status"] == "True"
    assert set(before["pods"]) < set(running(site, "image")["pods"])


@pytest.mark.parametrize(
    ("name", "waiting", "message", "reason"),
    [
        ("secret-env", "CreateContainerConfigError", 'secret "s3" not found', "SecretNotFound"),
        ("config-env", "CreateContainerConfigError", 'configmap "c" not found', "ConfigMapNotFound"),
    ],
)
def test_a_missing_reference_of_the_environment(site: Site, name: str, waiting: str, message: str, reason: str) -> None:
    site.create("prunedmodels", pruned_model(name))
    kubelet = Kubelet(site)
    kubelet.wait_reason(kubelet.wait_for_pods(name, "pack")[0], waiting, message)
    assert "does not exist" in site.wait_for(name, "ArtifactsReady", "False", reason)["message"]


@pytest.mark.parametrize(
    ("name", "spec", "secret"),
    [
        ("hub-token", {"model": {**HUB, "tokenSecretRef": {"name": "hub"}}}, "hub"),
        ("own-store", {"jobs": {"storeSecretRef": {"name": "own-s3"}}}, "own-s3"),
    ],
)
def test_a_secret_of_the_spec_is_missing_then_there(site: Site, name: str, spec: Json, secret: str) -> None:
    site.create("prunedmodels", pruned_model(name, **spec))
    kubelet = Kubelet(site)
    pod = kubelet.wait_for_pods(name, "pack")[0]
    (container,) = pod["spec"]["containers"]
    references = [env["valueFrom"]["secretKeyRef"] for env in container["env"] if "valueFrom" in env]
    references += [source["secretRef"] for source in container.get("envFrom", ())]
    assert secret in [reference["name"] for reference in references]
    kubelet.wait_reason(pod, "CreateContainerConfigError", f'secret "{secret}" not found')
    found = site.wait_for(name, "ArtifactsReady", "False", "SecretNotFound")
    assert f"Secret {secret} does not exist" in found["message"]
    assert site.condition(name, "Ready")["reason"] == "SecretNotFound"
    kubelet.pack(name)
    site.wait_for(name, "ArtifactsReady", "True", "Packed")


def test_a_missing_pull_secret(site: Site) -> None:
    site.create("prunedmodels", pruned_model("pull", imagePullSecrets=[{"name": "own-pull"}]))
    kubelet = Kubelet(site)
    pod = kubelet.wait_for_pods("pull", "pack")[0]
    assert {"name": "own-pull"} in pod["spec"]["imagePullSecrets"]
    kubelet.bind(pod)
    kubelet.wait_reason(pod, "ImagePullBackOff", "Back-off pulling image")
    event = {
        "metadata": {"name": "pull-secret"},
        "involvedObject": {"kind": "Pod", "namespace": site.namespace, **_reference(pod)},
        "reason": "FailedToRetrieveImagePullSecret",
        "type": "Warning",
        "message": "Unable to retrieve some image pull secrets (own-pull); attempting to pull the image may not work.",
        "lastTimestamp": "2026-11-23T00:00:00Z",
    }
    site.create("events", event)
    found = site.wait_for("pull", "ArtifactsReady", "False", "SecretNotFound")
    assert "pull Secret own-pull does not exist" in found["message"]


def test_a_missing_secret_of_a_volume(site: Site) -> None:
    site.create("prunedmodels", pruned_model("volume"))
    kubelet = Kubelet(site)
    pod = kubelet.wait_for_pods("volume", "pack")[0]
    kubelet.bind(pod)
    kubelet.wait_reason(pod, "ContainerCreating", "")
    event = {
        "metadata": {"name": "volume-mount"},
        "involvedObject": {"kind": "Pod", "namespace": site.namespace, **_reference(pod)},
        "reason": "FailedMount",
        "type": "Warning",
        "message": 'MountVolume.SetUp failed for volume "tls" : secret "mesh-tls" not found',
        "lastTimestamp": "2026-11-23T00:00:00Z",
    }
    site.create("events", event)
    found = site.wait_for("volume", "ArtifactsReady", "False", "SecretNotFound")
    assert "Secret mesh-tls does not exist" in found["message"]


def _reference(pod: Json) -> Json:
    return {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}


def test_calibration_missing_then_broken(site: Site) -> None:
    kubelet = Kubelet(site)
    site.create("prunedmodels", pruned_model("tasks", patterns={"tasks": [TASK]}))
    kubelet.pack("tasks")
    found = site.wait_for("tasks", "PatternsReady", "False", "ConfigMapNotFound")
    assert found["message"] == "ConfigMap prompts with calibration data does not exist"
    site.create("configmaps", {"metadata": {"name": "prompts"}, "data": {"other": ""}})
    wait(
        lambda: "no key addition.jsonl" in site.condition("tasks", "PatternsReady")["message"],
        60,
        lambda: str(site.condition("tasks", "PatternsReady")),
    )
    site.patch("configmaps", "prompts", {"data": {"addition.jsonl": "{broken"}})
    words = {"reason": "CALIBRATION_SYNTAX", "message": "addition.jsonl line 1: no JSON"}
    kubelet.end(kubelet.wait_for_pods("tasks", "profile")[0], words, exit_code=2)
    found = site.wait_for("tasks", "PatternsReady", "False", "CalibrationInvalid")
    assert found["message"] == words["message"]
    assert site.get("deployments", "tasks-worker") is None


def test_no_room_then_out_of_memory_then_serving(site: Site) -> None:
    kubelet = Kubelet(site)
    site.create("prunedmodels", pruned_model("room"))
    kubelet.pack("room")
    site.wait_for("room", "WorkersAvailable", "False", "Unschedulable")
    pod = kubelet.wait_for_pods("room", "worker")[0]
    ended = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-11-23T00:00:00Z"}
    kubelet.report(pod, phase="Running", state={"terminated": ended}, scheduled=True)
    site.wait_for("room", "WorkersAvailable", "False", "OOMKilled")
    assert site.model("room")["status"]["lastFailure"]["exitCode"] == 137
    kubelet.run(pod)
    site.wait_for("room", "Ready", "True", "AllReady")


def test_store_down_then_without_the_pack(site: Site) -> None:
    try:
        site.set_facts(None)
        site.create("prunedmodels", pruned_model("store"))
        Kubelet(site).pack("store")
        found = site.wait_for("store", "ArtifactsReady", "Unknown", "StoreUnreachable")
        assert "did not answer" in found["message"]
        site.set_facts({})
        site.wait_for("store", "ArtifactsReady", "False", "ManifestNotFound")
    finally:
        site.set_facts({MODEL_ID: FACTS})
    site.wait_for("store", "ArtifactsReady", "True", "Packed")


def test_a_foreign_object_is_left_alone(site: Site) -> None:
    made = site.create("configmaps", {"metadata": {"name": "foreign-residency"}, "data": {"own": "1"}})
    site.create("prunedmodels", pruned_model("foreign"))
    found = site.wait_for("foreign", "ChildrenApplied", "False", "ForeignObject")
    assert "ConfigMap foreign-residency" in found["message"]
    assert site.get("configmaps", "foreign-residency") == made
    site.delete("configmaps", "foreign-residency")
    site.wait_for("foreign", "ChildrenApplied", "True", "Applied")


def test_suspend_zero_replicas_and_scale(site: Site) -> None:
    serving_model(site, "scaled")
    kubelet = Kubelet(site)
    site.patch("prunedmodels", "scaled", {"spec": {"replicas": None, "workers": {"replicas": 0}}})
    site.wait_for("scaled", "Ready", "True", "ScaledToZero")
    assert site.condition("scaled", "Available")["status"] == "False"
    site.patch("prunedmodels", "scaled", {"spec": {"replicas": 2}}, "scale")
    kubelet.serve("scaled", 2)
    site.wait_for("scaled", "Ready", "True", "AllReady")
    scale = site.cluster.get(path(site.namespace, "prunedmodels", "scaled", "scale"))
    assert scale is not None
    assert scale["status"]["replicas"] == 2
    site.patch("prunedmodels", "scaled", {"spec": {"suspend": True}})
    site.wait_for("scaled", "Ready", "True", "Suspended")
    assert site.condition("scaled", "Available")["reason"] == "Suspended"
    site.patch("prunedmodels", "scaled", {"spec": {"suspend": False}})
    kubelet.serve("scaled", 2)
    site.wait_for("scaled", "Ready", "True", "AllReady")


@pytest.mark.slow
def test_a_stuck_rollout(site: Site) -> None:
    rollout = {"progressDeadlineSeconds": 60}
    workers = {"startupTimeoutSeconds": 10, "drainTimeoutSeconds": 1, "rollout": rollout}
    before = serving_model(site, "stuck", workers=workers)
    site.patch("prunedmodels", "stuck", {"spec": {"engine": {"maxSequences": 2}}})
    found = site.wait_for("stuck", "Progressing", "False", "ProgressDeadlineExceeded", timeout_s=150)
    assert "no progress for 60 s" in found["message"]
    assert site.condition("stuck", "Available")["status"] == "True"
    assert set(before["pods"]) < set(running(site, "stuck")["pods"])


def test_events_say_each_change_of_ready_once(site: Site) -> None:
    serving_model(site, "told")

    def said() -> list[tuple[str, str]]:
        events = [event for event in site.list("events.k8s.io") if event["regarding"]["name"] == "told"]
        ours = [event for event in events if event["reportingController"] == "premoe-operator"]
        return [(event["reason"], event["eventTime"]) for event in ours]

    # The status comes first, the Event a moment later.
    wait(lambda: "AllReady" in dict(said()), 30, lambda: str(said()))
    found = said()
    assert [reason for reason, _ in found].count("AllReady") == 1
    assert len(found) == len(set(found))


def test_an_exceeded_quota(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    site = make_site(control_plane, namespace, tmp_path)
    kubelet = Kubelet(site)
    with running_operator(site):
        before = serving_model(site, "quota")
        site.create("resourcequotas", {"metadata": {"name": "one"}, "spec": {"hard": {"pods": "1"}}})
        quota = path(namespace, "resourcequotas", "one")
        wait(lambda: "hard" in (control_plane.get(quota) or {}).get("status", {}), 30, lambda: "no quota status")
        site.patch("prunedmodels", "quota", {"spec": {"workers": {"replicas": 3}}})
        found = site.wait_for("quota", "Ready", "False", "QuotaExceeded")
        assert "exceeded quota: one" in found["message"]
        assert site.condition("quota", "Available")["status"] == "True"
        assert running(site, "quota")["pods"] == before["pods"]
        site.create("prunedmodels", pruned_model("refused"))
        site.wait_for("refused", "ArtifactsReady", "False", "QuotaExceeded")
        assert kubelet.pods("refused", "pack") == []
