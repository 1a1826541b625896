"""The worker template, Deployment and ControllerRevision as whole values."""

from __future__ import annotations

from typing import Any

import pytest
from premoe_operator import children
from premoe_operator.kube.objects import Json
from premoe_servicekit.settings import check_environment
from premoe_worker.settings import WorkerSettings, parse_arguments
from support.pruned_models import FULL, IMAGE, MODEL_ID, OWNER, SMALLEST, changed, inputs_of

from premoe_runtime.formats.errors import InvalidInput

LABELS = {
    "app.kubernetes.io/name": "premoe",
    "app.kubernetes.io/component": "worker",
    "app.kubernetes.io/instance": "mixtral",
    "app.kubernetes.io/managed-by": "premoe-operator",
    "app.kubernetes.io/part-of": "premoe",
    "premoe.dev/model": "mixtral",
}
SELECTOR = {
    "app.kubernetes.io/name": "premoe",
    "app.kubernetes.io/component": "worker",
    "premoe.dev/model": "mixtral",
}


def container_of(template: Json) -> Json:
    (container,) = template["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def env_of(template: Json) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container_of(template)["env"]}


def probe(failures: int, service: str = "") -> Json:
    grpc = {"port": 50053, "service": service}
    return {"grpc": grpc, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": failures}


def test_the_template_of_the_smallest_spec() -> None:
    template = children.worker_template(inputs_of(SMALLEST))
    env = container_of(template).pop("env")
    assert template == {
        "metadata": {
            "labels": {**LABELS, "premoe.dev/spec-hash": children.spec_hash(inputs_of(SMALLEST))},
            "annotations": {"kubectl.kubernetes.io/default-container": "premoe-worker"},
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "serviceAccountName": "mixtral-worker",
            "terminationGracePeriodSeconds": 5 + 30 + 60 + 10,
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": SELECTOR},
                }
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}},
                {"name": "home", "emptyDir": {"sizeLimit": "2Gi"}},
                {"name": "cache", "emptyDir": {"sizeLimit": "2Gi"}},
                {"name": "residency", "configMap": {"name": "mixtral-residency"}},
            ],
            "containers": [
                {
                    "name": "premoe-worker",
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["premoe-worker"],
                    "ports": [
                        {"name": "grpc", "containerPort": 50051, "protocol": "TCP"},
                        {"name": "admin", "containerPort": 50052, "protocol": "TCP"},
                        {"name": "health", "containerPort": 50053, "protocol": "TCP"},
                    ],
                    "startupProbe": probe(120),
                    "readinessProbe": probe(2),
                    "livenessProbe": probe(6, "liveness"),
                    "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                    "resources": {},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "home", "mountPath": "/home/premoe"},
                        {"name": "cache", "mountPath": "/var/cache/premoe"},
                        {"name": "residency", "mountPath": "/etc/premoe/residency", "readOnly": True},
                    ],
                }
            ],
        },
    }
    assert {each["name"]: each["value"] for each in env} == {
        "USER": "premoe",
        "HOME": "/home/premoe",
        "TMPDIR": "/tmp",
        "XDG_CACHE_HOME": "/var/cache/premoe",
        "TRITON_CACHE_DIR": "/var/cache/premoe/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/var/cache/premoe/inductor",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=131072",
        "PREMOE_WORKER_HOST": "0.0.0.0",
        "PREMOE_WORKER_PORT": "50051",
        "PREMOE_WORKER_ADMIN_HOST": "0.0.0.0",
        "PREMOE_WORKER_ADMIN_PORT": "50052",
        "PREMOE_WORKER_HEALTH_HOST": "0.0.0.0",
        "PREMOE_WORKER_HEALTH_PORT": "50053",
        "PREMOE_WORKER_STORE": "dns:///premoe-expert-store.premoe.svc:50051",
        "PREMOE_WORKER_RETRIEVAL": "dns:///premoe-retrieval.premoe.svc:50051",
        "PREMOE_WORKER_MODEL_ID": MODEL_ID.removeprefix("blake3:"),
        "PREMOE_WORKER_MODEL_NAME": "mixtral",
        "PREMOE_WORKER_BUDGET": "2/4",
        "PREMOE_WORKER_ON_UNKNOWN": "generalist",
        "PREMOE_WORKER_SPARE": "2",
        "PREMOE_WORKER_MAX_SEQUENCES": "8",
        "PREMOE_WORKER_QUEUE_LIMIT": "256",
        "PREMOE_WORKER_DEVICE": "cpu",
        "PREMOE_WORKER_RESIDENCY_DIR": "/etc/premoe/residency",
        "PREMOE_WORKER_DRAIN_S": "60",
        "PREMOE_WORKER_DRAIN_DELAY_S": "30",
        "PREMOE_WORKER_GRACE_S": "60",
        "PREMOE_WORKER_MAX_CONNECTION_AGE_S": "300",
        "PREMOE_WORKER_LOG_FORMAT": "json",
    }


@pytest.mark.parametrize("name", ["vllm", "auto"])
def test_another_engine_is_told_to_the_worker_and_makes_another_template(name: str) -> None:
    inputs, default = inputs_of(changed(SMALLEST, {"engine.name": name})), inputs_of(SMALLEST)
    assert env_of(children.worker_template(inputs))["PREMOE_WORKER_ENGINE"] == name
    assert "PREMOE_WORKER_ENGINE" not in env_of(children.worker_template(default))
    assert children.spec_hash(inputs) != children.spec_hash(default)


def test_denied_tasks_are_told_to_the_worker_and_make_another_template() -> None:
    inputs, default = inputs_of(changed(SMALLEST, {"patterns.deny": ["kb", "lang"]})), inputs_of(SMALLEST)
    assert env_of(children.worker_template(inputs))["PREMOE_WORKER_DENY"] == "kb,lang"
    assert "PREMOE_WORKER_DENY" not in env_of(children.worker_template(default))
    assert children.spec_hash(inputs) != children.spec_hash(default)
    assert children.spec_hash(inputs_of(changed(SMALLEST, {"patterns.deny": []}))) == children.spec_hash(default)


def test_what_a_full_spec_adds_to_the_environment() -> None:
    env = env_of(children.worker_template(inputs_of(FULL)))
    expected = {
        "OMP_NUM_THREADS": "3",
        "PREMOE_WORKER_STORE": "dns:///store.elsewhere.svc:7001",
        "PREMOE_WORKER_RETRIEVAL": "dns:///patterns.elsewhere.svc:7002",
        "PREMOE_WORKER_MODEL_NAME": "mixtral/8x7b",
        "PREMOE_WORKER_GENERALIST_BUDGET": "2/6",
        "PREMOE_WORKER_ON_UNKNOWN": "reject",
        "PREMOE_WORKER_SLOTS": "9",
        "PREMOE_WORKER_SPARE": "1",
        "PREMOE_WORKER_HOST_MEMORY_BYTES": str(4 << 30),
        "PREMOE_WORKER_CONTEXT_LENGTH": "2048",
        "PREMOE_WORKER_THREADS": "3",
        "PREMOE_WORKER_DEVICE": "cuda",
        "PREMOE_WORKER_TLS_CERT": "/etc/premoe/tls/tls.crt",
        "PREMOE_WORKER_TLS_KEY": "/etc/premoe/tls/tls.key",
        "PREMOE_WORKER_TLS_CA": "/etc/premoe/tls/ca.crt",
        "PREMOE_WORKER_STORE_SERVER_NAME": "store.elsewhere.svc",
        "PREMOE_WORKER_RETRIEVAL_SERVER_NAME": "patterns.elsewhere.svc",
        "POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}},
        "POD_NAMESPACE": {"fieldRef": {"fieldPath": "metadata.namespace"}},
        "NODE_NAME": {"fieldRef": {"fieldPath": "spec.nodeName"}},
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.tracing:4317",
        "OTEL_SERVICE_NAME": "premoe-worker",
        "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE),"
        "k8s.node.name=$(NODE_NAME),premoe.model=mixtral",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.5",
    }
    assert {name: env[name] for name in expected} == expected


def test_what_a_full_spec_adds_to_the_pod() -> None:
    template = children.worker_template(inputs_of(FULL))
    pod = template["spec"]
    assert template["metadata"]["labels"]["team"] == "search"
    assert template["metadata"]["annotations"]["note.test/owner"] == "search"
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["priorityClassName"] == "serving"
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["resourceClaims"] == [{"name": "device", "resourceClaimTemplateName": "device"}]
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}]
    assert pod["affinity"] == FULL["workers"]["placement"]["affinity"]
    assert pod["imagePullSecrets"] == [{"name": "own-pull"}]
    assert pod["topologySpreadConstraints"] == [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": SELECTOR},
            "nodeTaintsPolicy": "Honor",
            "matchLabelKeys": ["pod-template-hash"],
        }
    ]
    assert pod["terminationGracePeriodSeconds"] == 5 + 30 + 30 + 10
    assert pod["volumes"][3:] == [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}},
        {"name": "residency", "configMap": {"name": "mixtral-residency"}},
        {"name": "tls", "secret": {"secretName": "mixtral-worker-tls"}},
    ]
    assert container_of(template)["resources"] == {**FULL["workers"]["resources"], "claims": [{"name": "device"}]}
    assert container_of(template)["startupProbe"] == probe(60)
    assert container_of(template)["image"] == "registry.test/premoe/own:1"


def test_an_open_toleration_has_no_empty_fields() -> None:
    spec = changed(SMALLEST, {"workers.placement.tolerations": [{"operator": "Exists"}]})
    assert children.worker_template(inputs_of(spec))["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_no_spread_has_no_constraint() -> None:
    spec = changed(SMALLEST, {"workers.placement.spread": "None"})
    assert "topologySpreadConstraints" not in children.worker_template(inputs_of(spec))["spec"]


@pytest.mark.parametrize(("limit", "threads"), [("500m", "1"), ("1", "1"), ("3500m", "3"), ("16", "16"), (None, None)])
def test_threads_follow_the_cpu_limit(limit: str | None, threads: str | None) -> None:
    spec = SMALLEST if limit is None else changed(SMALLEST, {"workers.resources.limits": {"cpu": limit}})
    env = env_of(children.worker_template(inputs_of(spec)))
    assert env.get("PREMOE_WORKER_THREADS") == env.get("OMP_NUM_THREADS") == threads


def test_a_pinned_image_wins_over_spec_and_release() -> None:
    assert container_of(children.worker_template(inputs_of(FULL, image="pinned:1")))["image"] == "pinned:1"
    assert children.default_image(inputs_of(FULL, image="pinned:1")) == "registry.test/premoe/own:1"


@pytest.mark.parametrize(
    ("engine", "release", "worker", "job"),
    [
        ({}, {"vllmImage": "vllm:1"}, IMAGE, IMAGE),
        ({"name": "auto"}, {"vllmImage": "vllm:1"}, IMAGE, IMAGE),
        ({"name": "vllm"}, {"vllmImage": "vllm:1"}, "vllm:1", IMAGE),
        ({"name": "vllm"}, {}, IMAGE, IMAGE),
        ({"name": "vllm", "image": "own:1"}, {"vllmImage": "vllm:1"}, "own:1", "own:1"),
    ],
)
def test_the_engine_vllm_has_an_image_of_its_own(engine: Json, release: Json, worker: str, job: str) -> None:
    inputs = inputs_of(changed(SMALLEST, {"engine": engine}), release=release)
    assert container_of(children.worker_template(inputs))["image"] == worker
    assert container_of(children.pack_job(inputs)["spec"]["template"])["image"] == job


def test_arguments_of_vllm_reach_its_worker() -> None:
    given = {"enforce_eager": False, "compilation_config": {"level": 1}, "served": "$(HOME)"}
    env = env_of(
        children.worker_template(inputs_of(changed(SMALLEST, {"engine": {"name": "auto", "arguments": given}})))
    )
    assert env["PREMOE_WORKER_ENGINE"] == "auto"
    assert parse_arguments(env["PREMOE_WORKER_ENGINE_ARGUMENTS"].replace("$$", "$")) == given
    assert "$$(HOME)" in env["PREMOE_WORKER_ENGINE_ARGUMENTS"]


def test_what_the_release_adds() -> None:
    release = {
        "imagePullPolicy": "Always",
        "imagePullSecrets": ["pull"],
        "podSecurityContext": {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 1002},
        "extraEnv": [{"name": "OMP_WAIT_POLICY", "value": "ACTIVE"}, {"name": "PROXY", "value": "here"}],
        "extraVolumes": [{"name": "site", "persistentVolumeClaim": {"claimName": "site", "readOnly": True}}],
        "extraVolumeMounts": [{"name": "site", "mountPath": "/site", "readOnly": True}],
        "drain": {"preStopSeconds": 1, "delaySeconds": 2},
    }
    template = children.worker_template(inputs_of(SMALLEST, release=release))
    container, env = container_of(template), env_of(template)
    assert container["imagePullPolicy"] == "Always"
    assert template["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert template["spec"]["securityContext"] == release["podSecurityContext"]
    assert (env["OMP_WAIT_POLICY"], env["PROXY"]) == ("ACTIVE", "here")
    assert template["spec"]["volumes"][-1] == release["extraVolumes"][0]  # type: ignore[index]
    assert container["volumeMounts"][-1] == release["extraVolumeMounts"][0]  # type: ignore[index]
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 1}}}
    assert template["spec"]["terminationGracePeriodSeconds"] == 1 + 2 + 60 + 10


def test_workers_read_redis_and_object_storage_themselves_where_the_release_says() -> None:
    """A Secret that is not in their namespace holds up no worker: the expert store has all blobs."""
    release = {
        "workerRedis": {"secretName": "redis", "key": "address"},
        "workerObjectStore": {"read": True, "secretName": "packs"},
    }
    template = children.worker_template(inputs_of(SMALLEST, release=release))
    env = env_of(template)
    assert env["PREMOE_WORKER_REDIS_URL"] == {
        "secretKeyRef": {"name": "redis", "key": "address", "optional": True},
    }
    assert env["PREMOE_WORKER_OBJECT_STORE_URL"] == "s3://premoe/store"
    assert container_of(template)["envFrom"] == [{"secretRef": {"name": "packs", "optional": True}}]


def test_by_default_workers_know_the_expert_store_alone() -> None:
    """Images of workers of before there were other ways refuse settings that they do not know."""
    template = children.worker_template(inputs_of(SMALLEST, release={"workerObjectStore": {"secretName": "packs"}}))
    assert {name for name in env_of(template) if "REDIS" in name or "OBJECT" in name} == set()
    assert "envFrom" not in container_of(template)


def test_without_seconds_before_the_stop_there_is_no_hook() -> None:
    """API servers before 1.33 refuse to sleep for nothing."""
    template = children.worker_template(inputs_of(SMALLEST, release={"drain": {"preStopSeconds": 0}}))
    assert "lifecycle" not in container_of(template)


@pytest.mark.parametrize(
    ("own", "release", "secret"),
    [
        ({}, {"mode": "Disabled"}, None),
        ({}, {"mode": "Secret", "secretName": "shared"}, "shared"),
        ({}, {"mode": "CertManager", "issuerRef": {"name": "ca"}}, "mixtral-worker-tls"),
        ({"mode": "Disabled"}, {"mode": "Secret", "secretName": "shared"}, None),
        ({"mode": "Mutual", "secretName": "own"}, {"mode": "Disabled"}, "own"),
        ({"mode": "Mutual", "secretName": "own"}, {"mode": "CertManager", "issuerRef": {"name": "ca"}}, "own"),
        ({"mode": "Mutual", "issuerRef": {"name": "mine"}}, {"mode": "Secret", "secretName": "shared"}, "issued"),
    ],
)
def test_the_certificate_is_that_of_the_spec_else_of_the_release(
    own: dict[str, Any], release: dict[str, Any], secret: str | None
) -> None:
    inputs = inputs_of(changed(SMALLEST, {"access.tls": own}), release={"tls": release})
    template = children.worker_template(inputs)
    mounted = [each["secret"]["secretName"] for each in template["spec"]["volumes"] if each["name"] == "tls"]
    assert mounted == ([] if secret is None else ["mixtral-worker-tls" if secret == "issued" else secret])
    assert ("PREMOE_WORKER_TLS_CERT" in env_of(template)) == (secret is not None)
    assert (children.certificate(inputs) is not None) == (secret in ("issued", "mixtral-worker-tls"))


def test_the_name_that_peers_certificates_carry_is_told_to_workers_with_tls() -> None:
    release = {"tls": {"mode": "Secret", "secretName": "shared", "serverName": "premoe.internal"}}
    env = env_of(children.worker_template(inputs_of(SMALLEST, release=release)))
    assert env["PREMOE_WORKER_TLS_SERVER_NAME"] == "premoe.internal"
    assert "PREMOE_WORKER_TLS_RELEASE" not in env
    plain = changed(SMALLEST, {"access.tls.mode": "Disabled"})
    assert "PREMOE_WORKER_TLS_SERVER_NAME" not in env_of(children.worker_template(inputs_of(plain, release=release)))


def test_workers_listen_where_the_release_says() -> None:
    env = env_of(children.worker_template(inputs_of(SMALLEST, release={"listenAddress": "::"})))
    assert {name: env[f"PREMOE_WORKER_{name}"] for name in ("HOST", "ADMIN_HOST", "HEALTH_HOST")} == {
        "HOST": "::",
        "ADMIN_HOST": "::",
        "HEALTH_HOST": "::",
    }


def test_services_of_another_release_are_known_by_their_own_names() -> None:
    """Those of the own release carry its common name; a reference to them is no other release."""
    release = {"tls": {"mode": "Secret", "secretName": "shared", "serverName": "premoe.internal"}}
    own = {"name": "premoe-expert-store", "namespace": "premoe"}
    for spec, names in (
        ({}, (None, None)),
        ({"expertStoreRef": own}, (None, None)),
        ({"expertStoreRef": {"name": "shared"}}, ("shared.models.svc", None)),
        ({"retrievalRef": {"name": "shared", "namespace": "b"}}, (None, "shared.b.svc")),
    ):
        env = env_of(children.worker_template(inputs_of(changed(SMALLEST, spec), release=release)))
        told = tuple(env.get(f"PREMOE_WORKER_{part}_SERVER_NAME") for part in ("STORE", "RETRIEVAL"))
        assert told == names, spec


def test_workers_with_tls_check_roles_where_the_release_does() -> None:
    given = {"mode": "Secret", "secretName": "shared", "release": "premoe.serving"}
    for check, mode, told in ((True, "Release", "premoe.serving"), (False, "Release", None), (True, "Disabled", None)):
        spec = changed(SMALLEST, {"access.tls.mode": mode})
        inputs = inputs_of(spec, release={"tls": {**given, "checkRoles": check}})
        assert env_of(children.worker_template(inputs)).get("PREMOE_WORKER_TLS_RELEASE") == told


@pytest.mark.parametrize("spec", [SMALLEST, FULL])
def test_every_setting_is_one_of_the_worker_s_and_has_a_value_it_takes(spec: Any) -> None:
    release = {
        "tls": {"mode": "Secret", "secretName": "shared", "serverName": "premoe.internal"},
        "workerRedis": {"secretName": "redis"},
        "workerObjectStore": {"read": True},
    }
    env = env_of(children.worker_template(inputs_of(spec, release=release)))
    env["PREMOE_WORKER_REDIS_URL"] = "redis://from-the-secret:6379"
    given = {name: value for name, value in env.items() if name.startswith("PREMOE_WORKER_")}
    check_environment(WorkerSettings, given)
    fields = {name.removeprefix("PREMOE_WORKER_").lower(): value for name, value in given.items()}
    settings = WorkerSettings(**fields)
    assert settings.budget == "2/4"
    assert settings.port == 50051


def test_a_template_needs_the_pack() -> None:
    with pytest.raises(InvalidInput, match="mixtral is not packed yet"):
        children.worker_template(inputs_of(SMALLEST, model_id=""))


@pytest.mark.parametrize(
    ("kind", "rolling"),
    [
        ("Surge", {"maxSurge": 1, "maxUnavailable": 0}),
        ("InPlace", {"maxSurge": 0, "maxUnavailable": 1}),
        ("Recreate", {"maxSurge": 0, "maxUnavailable": "100%"}),
    ],
)
def test_the_deployment_takes_the_template_as_given(kind: str, rolling: Json) -> None:
    inputs = inputs_of(changed(FULL, {"workers.rollout.type": kind}))
    template = {"metadata": {"labels": {"some": "template"}}}
    assert children.worker_deployment(inputs, template) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mixtral-worker", "namespace": "models", "labels": LABELS, "ownerReferences": OWNERS},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": SELECTOR},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "progressDeadlineSeconds": 900,
            "revisionHistoryLimit": 2,
            "template": template,
        },
    }


OWNERS = [
    {
        "apiVersion": "premoe.dev/v1alpha1",
        "kind": "PrunedModel",
        "name": "mixtral",
        "uid": OWNER.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
]


def test_a_suspended_model_has_no_workers() -> None:
    assert children.worker_deployment(inputs_of(changed(FULL, {"suspend": True})), {})["spec"]["replicas"] == 0


def test_the_revision_keeps_the_template_under_its_hash() -> None:
    inputs = inputs_of(FULL)
    found, template = children.spec_hash(inputs), children.worker_template(inputs)
    assert children.template_revision(inputs, template) == {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"mixtral-{found[:8]}",
            "namespace": "models",
            "labels": {**LABELS, "premoe.dev/spec-hash": found},
            "ownerReferences": OWNERS,
        },
        "revision": 3,
        "data": template,
    }
    assert children.template_revision_name(inputs) == f"mixtral-{found[:8]}"


def test_neither_release_nor_pinned_image_are_in_the_spec_hash() -> None:
    hashes = {
        children.spec_hash(inputs)
        for inputs in (
            inputs_of(FULL),
            inputs_of(FULL, image="pinned:1"),
            inputs_of(FULL, release={"workerImage": "next:2", "extraEnv": [{"name": "NEW", "value": "1"}]}),
        )
    }
    assert len(hashes) == 1
    assert children.spec_hash(inputs_of(FULL, model_id=MODEL_ID[:-1] + "0")) not in hashes


def test_values_equal_to_defaults_do_not_change_the_hash() -> None:
    written = changed(SMALLEST, {"engine.spare": 2, "workers.placement": {"spread": "Host"}, "podTemplate": {}})
    assert children.spec_hash(inputs_of(written)) == children.spec_hash(inputs_of(SMALLEST))


GPU = {"workers.resources.limits": {"nvidia.com/gpu": "1"}}


@pytest.mark.parametrize(
    ("changes", "device"),
    [
        ({}, "cpu"),
        (GPU, "cuda"),
        ({"workers.resources.limits": {"nvidia.com/gpu": "0"}}, "cpu"),
        ({"workers.resources.limits": {"amd.com/gpu": "1"}}, "cuda"),
        ({"workers.resources.limits": {"nvidia.com/gpu.shared": "1"}}, "cuda"),
        ({"workers.resources.limits": {"nvidia.com/mig-1g.5gb": "1"}}, "cuda"),
        ({"workers.resources.limits": {"rdma.test/hca": "1"}}, "cpu"),
        ({"workers.resources.claims": [{"name": "gpu", "template": "gpu"}]}, "cuda"),
        ({**GPU, "engine.device": "cuda:0"}, "cuda:0"),
        ({**GPU, "engine.device": "cpu"}, "cpu"),
    ],
)
def test_the_device_is_the_one_that_the_pod_gets(changes: Json, device: str) -> None:
    template = children.worker_template(inputs_of(changed(SMALLEST, changes)))
    assert env_of(template)["PREMOE_WORKER_DEVICE"] == device


def test_a_device_worked_out_and_the_same_one_named_are_one_template() -> None:
    for device, changes in (("cpu", {}), ("cuda", GPU)):
        found = [inputs_of(changed(SMALLEST, {**changes, "engine.device": named})) for named in ("auto", device)]
        assert len({children.spec_hash(inputs) for inputs in found}) == 1


def test_hashes_are_the_same_in_every_version_of_the_operator() -> None:
    """An operator that hashes differently would restart every worker and run every Job again."""
    spec = {
        "model": {"uri": "s3://models/tiny", "servedName": "tiny"},
        "budget": "2/4",
        "patterns": {
            "tasks": [{"name": "code", "calibration": {"uri": "s3://data/code.jsonl"}}],
            "onUnknown": "Reject",
            # The defaults of then, which the API server stored.
            "metric": "PEU",
        },
        "engine": {"spare": 1, "maxTokens": 256},
        "workers": {
            "resources": {"limits": {"cpu": "2"}},
            "labels": {"team": "search"},
            "startupTimeoutSeconds": 600,
        },
    }
    inputs = inputs_of(spec)
    jobs = [children.pack_job(inputs), children.profile_job(inputs), children.patterns_job(inputs)]
    assert children.spec_hash(inputs) == "0b3c0702967c5f08"
    assert [job and job["metadata"]["name"] for job in jobs] == [
        "mixtral-pack-15702-7a83",
        "mixtral-profile-18018-7a83",
        "mixtral-patterns-c6452-7a83",
    ]


def test_metrics_have_a_port_where_the_release_serves_them() -> None:
    release = {"metrics": {"enabled": True, "annotations": True}}
    without = children.worker_template(inputs_of(SMALLEST))
    template = children.worker_template(inputs_of(SMALLEST, release=release))
    container, plain = container_of(template), container_of(without)
    assert [port for port in container["ports"] if port not in plain["ports"]] == [
        {"name": "metrics", "containerPort": 50054, "protocol": "TCP"}
    ]
    assert [each for each in container["env"] if each not in plain["env"]] == [
        {"name": "PREMOE_WORKER_METRICS_PORT", "value": "50054"}
    ]
    found = template["metadata"]["annotations"]
    assert found.pop("prometheus.io/port") == "50054"
    assert found.pop("prometheus.io/scrape") == "true"
    assert found.pop("prometheus.io/path") == "/metrics"
    assert found == without["metadata"]["annotations"]
