"""What the chart tells processes is what their settings understand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from premoe_expert_store.settings import ExpertStoreSettings
from premoe_gateway.settings import GatewaySettings
from premoe_operator.api.release import Release, read_release
from premoe_operator.run.publisher import KEY
from premoe_operator.run.settings import OperatorSettings
from premoe_retrieval.settings import RetrievalSettings
from premoe_servicekit.roles import Role, identity
from premoe_servicekit.settings import S, load_settings
from support.charts import CHART, PROFILES, Object, merged, named, of_kind, render, rendered, values_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TLS_FILES = ("/etc/premoe/tls/tls.crt", "/etc/premoe/tls/tls.key", "/etc/premoe/tls/ca.crt")


@pytest.mark.parametrize("profile", PROFILES)
def test_every_process_takes_its_settings(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable is unknown, none is invalid, and ports and addresses are those of the contract."""
    tls = TLS_FILES if profile != "plain" else ("", "", "")
    for component, settings in (
        ("retrieval", RetrievalSettings),
        ("expert-store", ExpertStoreSettings),
        ("gateway", GatewaySettings),
    ):
        loaded = load(rendered(profile), component, settings, monkeypatch)
        assert (loaded.host, loaded.port, loaded.health_port) == ("0.0.0.0", 50051, 50053)
        assert (loaded.tls_cert, loaded.tls_key, loaded.tls_ca) == tls
        assert loaded.tls_server_name == ("premoe.serving.svc" if tls[0] else "")
        assert loaded.tls_release == ("premoe.serving" if tls[0] else "")
        assert loaded.drain_delay_s + loaded.grace_s < 45
        assert loaded.log_format == "json"


@pytest.mark.parametrize("profile", PROFILES)
def test_the_console_is_off_unless_asked_for(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(rendered(profile), "gateway", GatewaySettings, monkeypatch).console is (profile == "full")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_operator_takes_its_settings(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(rendered(profile), "operator", OperatorSettings, monkeypatch)
    assert (loaded.http_host, loaded.http_port) == ("0.0.0.0", 8080)
    assert loaded.watch_namespaces == (("default",) if profile == "secret" else ())
    assert loaded.watch_certificates is (profile == "full")
    assert loaded.release_file == "/etc/premoe/operator/release.json"
    assert loaded.lease_name == named(rendered(profile), "Lease", "premoe-operator")["metadata"]["name"]
    assert bool(loaded.tls_cert) is (profile != "plain")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_operator_reads_the_release_file(profile: str, tmp_path: Path) -> None:
    release = release_of(rendered(profile), tmp_path)
    assert release.expert_store.name == "premoe-expert-store"
    assert release.retrieval.namespace == "serving"
    assert release.tls.mode == {"plain": "Disabled", "secret": "Secret", "full": "CertManager"}[profile]
    assert release.pod_security_context == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_release_file_of_the_full_profile(tmp_path: Path) -> None:
    release = release_of(rendered("full"), tmp_path)
    assert release.worker_image == "registry.example/mirror/premoe-worker:0.1.0"
    assert release.vllm_image == "registry.example/mirror/premoe-worker-vllm:0.1.0"
    assert release.image_pull_secrets == ["pull"]
    assert release.tls.issuer_ref is not None
    assert (release.tls.issuer_ref.name, release.tls.issuer_ref.kind) == ("mesh", "ClusterIssuer")
    assert release.tls.server_name == "premoe.serving.svc"
    assert (release.tls.release, release.tls.check_roles) == ("premoe.serving", True)
    assert release.pod_template.allowed_paths == ["spec.dnsPolicy", "spec.containers[premoe-worker].env"]
    assert release.egress.s3 == [{"ports": [{"protocol": "TCP", "port": 443}]}]


def test_what_the_release_is_set_to_reaches_workers(tmp_path: Path) -> None:
    rule = {"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "ports": [{"protocol": "TCP", "port": 80}]}
    values = {
        "clusterDomain": "cluster.test",
        "listenAddress": "::",
        "tls": {"duration": "24h", "renewBefore": "8h"},
        "podSecurityContext": {"runAsUser": None, "runAsGroup": 1000660000, "fsGroup": 1},
        "networkPolicy": {"egress": {"identity": [rule]}},
    }
    release = release_of(render(CHART, merged(values_of("full"), values)), tmp_path)
    assert (release.cluster_domain, release.listen_address) == ("cluster.test", "::")
    assert (release.tls.duration, release.tls.renew_before) == ("24h", "8h")
    assert release.pod_security_context == {
        "runAsNonRoot": True,
        "runAsGroup": 1000660000,
        "fsGroup": 1,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert release.egress.identity == [rule]


def test_release_file_of_the_secret_profile(tmp_path: Path) -> None:
    release = release_of(rendered("secret"), tmp_path)
    assert release.store_secret_name == "object-store"
    assert release.tls.secret_name == "mesh-tls"
    assert (release.tracing.endpoint, release.tracing.sample_ratio) == ("http://collector.example:4318", "0.1")
    assert release.extra_env == [{"name": "OTEL_EXPORTER_OTLP_PROTOCOL", "value": "http/protobuf"}]


def test_callers_in_the_release_file_are_labels_of_the_pods(tmp_path: Path) -> None:
    """Workers' NetworkPolicies let in pods with these labels: the gateway and the test pods have them."""
    release = release_of(rendered("plain"), tmp_path)
    assert release.gateway is not None
    assert release.operator is not None
    gateway = named(rendered("plain"), "Deployment", "premoe-gateway")["spec"]["template"]["metadata"]["labels"]
    test = named(rendered("plain"), "Pod", "premoe-test-generate")["metadata"]["labels"]
    operator = named(rendered("plain"), "Deployment", "premoe-operator")["spec"]["template"]["metadata"]["labels"]
    retrieval = named(rendered("plain"), "Deployment", "premoe-retrieval")["spec"]["template"]["metadata"]["labels"]
    assert gateway.items() >= release.gateway.pod_labels.items()
    assert test.items() >= release.gateway.pod_labels.items()
    assert not retrieval.items() >= release.gateway.pod_labels.items()
    assert operator.items() >= release.operator.pod_labels.items()
    assert retrieval.items() >= release.retrieval.pod_labels.items()


def test_worker_values_reach_the_release_file(tmp_path: Path) -> None:
    worker: Object = {
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        "extraVolumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
        "drain": {"delaySeconds": 7},
        "redis": {"existingSecret": "redis", "key": "address"},
        "objectStore": {"read": True, "existingSecret": "packs"},
        "vllmImage": {"registry": "registry.example", "repository": "own/vllm", "digest": f"sha256:{64 * 'a'}"},
    }
    release = release_of(render(CHART, values_of("plain") | {"worker": worker}), tmp_path)
    assert release.extra_env == worker["extraEnv"]
    assert release.extra_volumes == worker["extraVolumes"]
    assert release.extra_volume_mounts == worker["extraVolumeMounts"]
    assert (release.drain.pre_stop_seconds, release.drain.delay_seconds) == (5, 7)
    assert (release.worker_redis.secret_name, release.worker_redis.key) == ("redis", "address")
    assert (release.worker_object_store.read, release.worker_object_store.secret_name) == (True, "packs")
    assert release.egress.redis == [{"ports": [{"protocol": "TCP", "port": 6379}]}]
    assert release.vllm_image == f"registry.example/own/vllm@sha256:{64 * 'a'}"


def test_backends_come_from_secrets() -> None:
    store = container(rendered("secret"), "expert-store")
    retrieval = container(rendered("secret"), "retrieval")
    for given in (store, retrieval):
        assert {"secretRef": {"name": "object-store"}} in given["envFrom"]
    assert {
        "name": "PREMOE_EXPERT_STORE_REDIS_URL",
        "valueFrom": {"secretKeyRef": {"name": "cache", "key": "url"}},
    } in store["env"]
    assert {
        "name": "PREMOE_RETRIEVAL_QDRANT_API_KEY",
        "valueFrom": {"secretKeyRef": {"name": "qdrant", "key": "api-key"}},
    } in retrieval["env"]
    assert "secretRef" not in json.dumps(container(rendered("secret"), "gateway")["envFrom"])


def test_the_index_is_embedded_or_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = load(rendered("plain"), "retrieval", RetrievalSettings, monkeypatch)
    server = load(rendered("secret"), "retrieval", RetrievalSettings, monkeypatch)
    trial = load(rendered("full"), "retrieval", RetrievalSettings, monkeypatch)
    assert [embedded.qdrant, server.qdrant, trial.qdrant] == [
        "",
        "https://qdrant.example:6333",
        "http://premoe-qdrant.serving.svc:6333",
    ]


def test_the_gateway_finds_workers_of_the_namespace_and_named_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(rendered("full"), "gateway", GatewaySettings, monkeypatch)
    assert loaded.workers == ("dns:///premoe-workers.serving.svc:50051", "dns:///chat-worker.team-a.svc:50051")
    assert loaded.retrieval == "dns:///premoe-retrieval.serving.svc:50051"


def test_the_gateway_mounts_what_the_operator_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(rendered("plain"), "gateway", GatewaySettings, monkeypatch)
    folder, _, key = loaded.workers_file.rpartition("/")
    volumes = mounted(rendered("plain"))
    assert (volumes[folder]["configMap"], key) == ({"name": "premoe-gateway-workers", "optional": True}, KEY)
    operator = load(rendered("plain"), "operator", OperatorSettings, monkeypatch)
    assert operator.workers_config_map == "premoe-gateway-workers"
    # An upgrade would reset data that the chart wrote.
    assert set(named(rendered("plain"), "ConfigMap", "premoe-gateway-workers")) == {"apiVersion", "kind", "metadata"}


def test_keys_and_certificate_of_the_gateway_are_mounted_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded = load(rendered("full"), "gateway", GatewaySettings, monkeypatch)
    volumes = mounted(rendered("full"))
    assert volumes[loaded.keys_file.removesuffix("/keys.json")]["secret"] == {"secretName": "api-keys"}
    assert (loaded.http_tls_cert, loaded.http_tls_key) == ("/etc/premoe/https/tls.crt", "/etc/premoe/https/tls.key")
    assert volumes["/etc/premoe/https"]["secret"] == {"secretName": "front"}
    for probe in ("startupProbe", "readinessProbe"):
        assert container(rendered("full"), "gateway")[probe]["httpGet"]["scheme"] == "HTTPS"
    gateway = release_of(rendered("full"), tmp_path).gateway
    assert gateway is not None
    assert gateway.url == "https://premoe-gateway.serving.svc:80"
    plain = load(rendered("plain"), "gateway", GatewaySettings, monkeypatch)
    assert (plain.keys_file, plain.http_tls_cert, plain.http_tls_key) == ("", "", "")


def mounted(objects: list[Object]) -> dict[str, Object]:
    """Volumes of the gateway's pods by where its container has them."""
    spec = named(objects, "Deployment", "premoe-gateway")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in spec["containers"][0]["volumeMounts"]}


def test_traces_name_the_pod() -> None:
    data = named(rendered("secret"), "ConfigMap", "premoe-gateway")["data"]
    assert data["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.example:4318"
    assert data["OTEL_TRACES_SAMPLER_ARG"] == "0.1"
    variables = [item["name"] for item in container(rendered("secret"), "gateway")["env"]]
    # Kubernetes replaces $(NAME) only by variables that stand before.
    assert variables.index("POD_NAME") < variables.index("OTEL_RESOURCE_ATTRIBUTES")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in named(rendered("plain"), "ConfigMap", "premoe-gateway")["data"]


def test_certificates_carry_the_name_that_clients_check() -> None:
    for component in ("operator", "retrieval", "expert-store", "gateway"):
        spec = named(rendered("full"), "Certificate", f"premoe-{component}")["spec"]
        assert spec["dnsNames"][0] == "premoe.serving.svc"
        assert f"premoe-{component}.serving.svc" in spec["dnsNames"]
        assert {"server auth", "client auth"} <= set(spec["usages"])
        volumes = named(rendered("full"), "Deployment", f"premoe-{component}")["spec"]["template"]["spec"]["volumes"]
        assert {"name": "tls", "secret": {"secretName": spec["secretName"]}} in volumes


def test_every_component_has_a_certificate_of_its_own_role() -> None:
    for component in ("operator", "retrieval", "expert-store", "gateway", "test"):
        spec = named(rendered("full"), "Certificate", f"premoe-{component}")["spec"]
        assert spec["uris"] == [identity("premoe.serving", Role(component))]
    mounted = {
        volume["secret"]["secretName"]
        for pod in of_kind(rendered("full"), "Pod")
        for volume in pod["spec"]["volumes"]
        if volume["name"] == "tls"
    }
    assert mounted == {"premoe-test-tls"}


def test_roles_are_in_certificates_before_they_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that an upgrade can issue them first."""
    objects = render(CHART, merged(values_of("full"), {"tls": {"checkRoles": False}}))
    assert load(objects, "expert-store", ExpertStoreSettings, monkeypatch).tls_release == ""
    assert named(objects, "Certificate", "premoe-gateway")["spec"]["uris"] == ["premoe://premoe.serving/gateway"]
    release = release_of(objects, tmp_path)
    assert (release.tls.release, release.tls.check_roles) == ("premoe.serving", False)


def test_guests_are_told_to_expert_store_and_retrieval_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    guests = [{"release": "other", "namespace": "team-a"}, {"release": "third", "namespace": "team-b"}]
    objects = render(CHART, values_of("full") | {"guests": guests})
    told = ("other.team-a", "third.team-b")
    assert load(objects, "expert-store", ExpertStoreSettings, monkeypatch).tls_guests == told
    assert load(objects, "retrieval", RetrievalSettings, monkeypatch).tls_guests == told
    assert load(objects, "gateway", GatewaySettings, monkeypatch).tls_guests == ()
    plain = render(CHART, values_of("plain") | {"guests": guests})
    assert load(plain, "expert-store", ExpertStoreSettings, monkeypatch).tls_guests == ()


def container(objects: list[Object], component: str) -> Object:
    spec = named(objects, "Deployment", f"premoe-{component}")["spec"]["template"]["spec"]
    found: Object = spec["containers"][0]
    return found


def load(objects: list[Object], component: str, settings: type[S], monkeypatch: pytest.MonkeyPatch) -> S:
    """The settings as the process in the pod would read them; Secrets hold "from-a-secret"."""
    spec = container(objects, component)
    environment: dict[str, str] = {}
    for source in spec["envFrom"]:
        if "configMapRef" in source and not source["configMapRef"].get("optional"):
            environment |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for item in spec["env"]:
        environment[item["name"]] = item.get("value", "from-a-secret")
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return load_settings(settings, f"premoe-{component}", [], environment)


def release_of(objects: list[Object], folder: Path) -> Release:
    path = folder / "release.json"
    path.write_text(named(objects, "ConfigMap", "premoe-operator")["data"]["release.json"])
    return read_release(path)
