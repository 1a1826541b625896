"""Every pod of the chart, under every set of values: safe, probed, pinned, and placed as asked."""

from __future__ import annotations

from typing import Any

import pytest
from support.charts import CHART, PROFILES, Object, named, of_kind, pod_templates, render, rendered, values_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

COMPONENTS = ("operator", "retrieval", "expert-store", "gateway")


@pytest.mark.parametrize("profile", PROFILES)
def test_pods_pass_the_restricted_profile_and_write_nowhere_but_tmp(profile: str) -> None:
    for name, pod in pod_templates(rendered(profile)):
        spec = pod["spec"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], name
            assert container["resources"]["limits"]["memory"], name
        assert not any("hostPath" in volume for volume in spec["volumes"]), name
        tmp = next(volume for volume in spec["volumes"] if volume["name"] == "tmp")
        assert tmp["emptyDir"]["sizeLimit"] == "256Mi", name


@pytest.mark.parametrize("profile", PROFILES)
def test_only_the_operator_gets_a_token_and_no_pod_gets_variables_of_services(profile: str) -> None:
    for name, pod in pod_templates(rendered(profile)):
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        assert pod["spec"]["automountServiceAccountToken"] is (component == "operator"), name
        # A Service called premoe-gateway would inject PREMOE_GATEWAY_PORT=tcp://…, which settings refuse.
        assert pod["spec"]["enableServiceLinks"] is False, name
    for account in of_kind(rendered(profile), "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("profile", PROFILES)
def test_images_are_pinned(profile: str) -> None:
    for name, pod in pod_templates(rendered(profile)):
        for container in pod["spec"]["containers"]:
            reference = container["image"]
            assert "@sha256:" in reference or ":" in reference.rpartition("/")[2], name
            assert not reference.endswith(":latest"), name


@pytest.mark.parametrize("component", COMPONENTS)
def test_start_up_readiness_and_liveness_are_probed(component: str) -> None:
    container = deployment(component)["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {kind: container[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    if component == "operator":
        assert ports == {"http": 8080}
        paths = {kind: probe["httpGet"]["path"] for kind, probe in probes.items()}
        assert paths == {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
        return
    # Liveness has a service of its own, which says SERVING while the process drains.
    assert probes["livenessProbe"]["grpc"] == {"port": 50053, "service": "liveness"}
    assert ports["health"] == 50053
    if component == "gateway":
        assert ports["http"] == 8000
        # Its gRPC health says whether a worker serves: before the first model that would hold up `helm install --wait`.
        assert probes["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    else:
        assert ports["grpc"] == 50051
        assert probes["startupProbe"]["grpc"] == probes["readinessProbe"]["grpc"] == {"port": 50053}
    seconds = probes["startupProbe"]["periodSeconds"] * probes["startupProbe"]["failureThreshold"]
    assert seconds >= 60


@pytest.mark.parametrize("component", COMPONENTS)
def test_selectors_labels_and_budgets_fit_together(component: str) -> None:
    objects = rendered("plain")
    name = f"premoe-{component}"
    selector = {
        "app.kubernetes.io/name": "premoe",
        "app.kubernetes.io/instance": "premoe",
        "app.kubernetes.io/component": component,
    }
    spec = deployment(component)["spec"]
    assert spec["selector"] == {"matchLabels": selector}
    assert spec["template"]["metadata"]["labels"].items() >= selector.items()
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert named(objects, "Service", name)["spec"]["selector"] == selector
    assert named(objects, "PodDisruptionBudget", name)["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": selector},
    }
    for obj in objects:
        labels = obj["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "premoe", obj["kind"]


def test_grpc_services_are_headless_so_that_clients_see_every_pod() -> None:
    services = {obj["metadata"]["name"]: obj["spec"] for obj in of_kind(rendered("plain"), "Service")}
    headless = {name for name, spec in services.items() if spec.get("clusterIP") == "None"}
    assert headless == {"premoe-retrieval", "premoe-expert-store", "premoe-workers"}
    assert services["premoe-workers"]["selector"] == {
        "app.kubernetes.io/name": "premoe",
        "app.kubernetes.io/component": "worker",
    }


def test_a_new_chart_version_alone_restarts_no_pod() -> None:
    """Nothing of a pod template names the chart's version."""
    for name, pod in pod_templates(rendered("plain")):
        assert "helm.sh/chart" not in pod["metadata"]["labels"], name
        assert "app.kubernetes.io/version" not in pod["metadata"]["labels"], name


def test_a_changed_setting_rolls_only_the_pods_that_it_concerns() -> None:
    values = values_of("plain") | {"expertStore": {"threads": 3}}
    before, after = rendered("plain"), render(CHART, values)
    changed = {c for c in COMPONENTS if template(before, c) != template(after, c)}
    assert changed == {"expert-store"}


def test_placement_and_extras_reach_the_pod() -> None:
    spec = template(rendered("full"), "gateway")["spec"]
    container = spec["containers"][0]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert spec["tolerations"] == [{"key": "dedicated", "operator": "Exists"}]
    assert spec["affinity"] == {"nodeAffinity": {}}
    selector = deployment("gateway")["spec"]["selector"]
    assert [(item["maxSkew"], item["labelSelector"]) for item in spec["topologySpreadConstraints"]] == [(2, selector)]
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert {"name": "PREMOE_GATEWAY_POLL_S", "value": "2"} in container["env"]
    assert {"configMapRef": {"name": "more", "optional": True}} in container["envFrom"]
    assert {"name": "more", "mountPath": "/more"} in container["volumeMounts"]
    assert {"name": "more", "emptyDir": {}} in spec["volumes"]
    metadata = template(rendered("full"), "gateway")["metadata"]
    assert metadata["labels"]["tier"] == "front"
    assert metadata["labels"]["team"] == "serving"
    assert metadata["annotations"]["example.com/scrape"] == "no"
    assert template(rendered("full"), "operator")["spec"]["priorityClassName"] == "system-cluster-critical"


def test_digest_wins_over_tag_and_the_global_registry_comes_first() -> None:
    images = {
        name: pod["spec"]["containers"][0]["image"]
        for name, pod in pod_templates(rendered("full"))
        if not name.startswith("Pod/")
    }
    assert images["Deployment/premoe-operator"] == (
        "registry.example/mirror/premoe-operator@"
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert images["Deployment/premoe-gateway"] == "registry.example/mirror/premoe-gateway:0.1.0"
    assert images["StatefulSet/premoe-qdrant"] == "registry.example/mirror/qdrant/qdrant:v1.19.0-unprivileged"


def test_user_ids_can_be_left_to_the_platform() -> None:
    """OpenShift gives each namespace a range of its own and refuses pods that name another user."""
    values = values_of("plain") | {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
    for name, pod in pod_templates(render(CHART, values)):
        assert set(pod["spec"]["securityContext"]) == {"runAsNonRoot", "seccompProfile"}, name


def test_names_that_look_like_numbers_stay_text() -> None:
    values: dict[str, Any] = {
        "objectStore": {"url": "s3://packs", "existingSecret": "123"},
        "redis": {"existingSecret": "7"},
        "tls": {"mode": "Secret", "secretName": "1"},
    }
    objects = render(CHART, values, release="1234", namespace="99")
    container = named(objects, "Deployment", "1234-expert-store")["spec"]["template"]["spec"]["containers"][0]
    assert {"secretRef": {"name": "123"}} in container["envFrom"]
    for obj in objects:
        assert obj["metadata"]["labels"]["app.kubernetes.io/instance"] == "1234"
        assert obj["metadata"].get("namespace", "99") == "99"


def deployment(component: str) -> Object:
    return named(rendered("plain"), "Deployment", f"premoe-{component}")


def template(objects: list[Object], component: str) -> Object:
    found: Object = named(objects, "Deployment", f"premoe-{component}")["spec"]["template"]
    return found
