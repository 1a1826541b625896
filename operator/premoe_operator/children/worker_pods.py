"""The pod template of the workers."""

from __future__ import annotations

import json
import math

from premoe_operator.api.names import LABEL_SPEC_HASH
from premoe_operator.children.accounts import account_name
from premoe_operator.children.hashes import spec_hash
from premoe_operator.children.inputs import (
    ADMIN_PORT,
    GRPC_PORT,
    HEALTH_PORT,
    METRICS_PORT,
    Inputs,
    default_image,
    labels,
    worker_selector,
)
from premoe_operator.children.pod_template import merged_pod_template
from premoe_operator.children.pods import (
    PodShape,
    env_list,
    pod_spec,
    thread_count,
    tracing_env,
    worker_device,
)
from premoe_operator.children.quantity import parse_bytes
from premoe_operator.children.services import expert_store, foreign_name, grpc_target, retrieval
from premoe_operator.children.transport import TLS_FOLDER, transport
from premoe_operator.kube.objects import Json
from premoe_runtime.formats.ids import DIGEST_PREFIX, bare_digest

WORKER_CONTAINER = "premoe-worker"
SETTINGS_PREFIX = "PREMOE_WORKER_"
RESIDENCY_FOLDER = "/etc/premoe/residency"

PROBE_PERIOD_S = 5
START_S = 600
"""To start the process, find its services and prove one forward, whatever the model's size."""
LOAD_BYTES_PER_S = 64 << 20
"""What a worker loads at least, from object storage through the expert store."""
START_MAX_S = 86_400
MAX_CONNECTION_AGE_S = 300
"""Clients look up a headless Service's pods again when a connection ends: new workers get work within this time."""
_STOP_MARGIN_S = 10
"""From the end of the last request to the exit of the process: models are unloaded and spans exported meanwhile."""

_SCRAPE = {"scrape": "true", "path": "/metrics", "port": str(METRICS_PORT)}
_TOPOLOGY = {"Host": "kubernetes.io/hostname", "Zone": "topology.kubernetes.io/zone"}


def worker_template(inputs: Inputs) -> Json:
    """The template of the workers' pods, spec.podTemplate merged in.

    Raises InvalidInput: not packed yet (MODEL_ID_UNKNOWN), or spec.podTemplate sets what the release does not allow
    (POD_TEMPLATE_REFUSED).
    """
    workers = inputs.spec.workers
    spec = pod_spec(inputs, _shape(inputs))
    drain = inputs.release.drain
    stop = drain.pre_stop_seconds + drain.delay_seconds + workers.drain_timeout_seconds + _STOP_MARGIN_S
    spec["terminationGracePeriodSeconds"] = stop
    if workers.placement.spread != "None":
        spec["topologySpreadConstraints"] = [_spread(inputs)]
    template: Json = {
        "metadata": {
            "labels": {**labels(inputs, "worker", workers.labels), LABEL_SPEC_HASH: spec_hash(inputs)},
            "annotations": {
                **_scraped(inputs),
                **workers.annotations,
                "kubectl.kubernetes.io/default-container": WORKER_CONTAINER,
            },
        },
        "spec": spec,
    }
    return merged_pod_template(template, inputs.spec.pod_template, inputs.release.pod_template.allowed_paths)


def _spread(inputs: Inputs) -> Json:
    placement = inputs.spec.workers.placement
    constraint: Json = {
        "maxSkew": 1,
        "topologyKey": _TOPOLOGY[placement.spread],
        "whenUnsatisfiable": placement.when_unsatisfiable,
        "labelSelector": {"matchLabels": worker_selector(inputs.owner.name)},
    }
    if placement.when_unsatisfiable == "ScheduleAnyway":
        return constraint
    # Nodes that no worker may enter would count as empty, and old workers would block their replacements.
    return {**constraint, "nodeTaintsPolicy": "Honor", "matchLabelKeys": ["pod-template-hash"]}


def startup_seconds(inputs: Inputs) -> int:
    """Seconds that a worker may take to become ready, as the spec says or worked out from what it loads."""
    named = inputs.spec.workers.startup_timeout_seconds
    return named or min(START_MAX_S, START_S + math.ceil(inputs.load_bytes / LOAD_BYTES_PER_S))


def startup_of(template: Json) -> int:
    """The same of a template that was rendered before; 0 where it has no such probe."""
    probe = _worker_container(template).get("startupProbe") or {}
    return int(probe.get("failureThreshold", 0)) * int(probe.get("periodSeconds", 0))


def image_of(template: Json) -> str:
    """Image of the worker container of a template."""
    return str(_worker_container(template).get("image", ""))


def model_of(template: Json) -> str:
    """Id of the pack that workers of a template serve; empty where it does not say."""
    env: list[Json] = _worker_container(template).get("env") or []
    found = next((str(each.get("value", "")) for each in env if each["name"] == f"{SETTINGS_PREFIX}MODEL_ID"), "")
    return f"{DIGEST_PREFIX}{found}" if found else ""


def _worker_container(template: Json) -> Json:
    containers: list[Json] = template.get("spec", {}).get("containers") or []
    return next((each for each in containers if each.get("name") == WORKER_CONTAINER), {})


def _shape(inputs: Inputs) -> PodShape:
    workers = inputs.spec.workers
    volumes: list[Json] = [{"name": "residency", "configMap": {"name": f"{inputs.owner.name}-residency"}}]
    mounts: list[Json] = [{"name": "residency", "mountPath": RESIDENCY_FOLDER, "readOnly": True}]
    tls = transport(inputs)
    if tls is not None:
        volumes.append({"name": "tls", "secret": {"secretName": tls.secret_name}})
        mounts.append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
    return PodShape(
        container=_container(inputs),
        env=[*_settings(inputs), *_redis(inputs), *tracing_env(inputs, "premoe-worker")],
        env_from=_object_store_keys(inputs),
        volumes=volumes,
        mounts=mounts,
        resources=workers.resources,
        placement=workers.placement,
        account=account_name(inputs, "worker"),
        threads=_threads(inputs),
        scratch_size=workers.scratch_size,
        shared_memory_size=workers.shared_memory_size,
    )


def _container(inputs: Inputs) -> Json:
    def probe(failures: int, service: str = "") -> Json:
        grpc: Json = {"port": HEALTH_PORT, "service": service}
        return {"grpc": grpc, "periodSeconds": PROBE_PERIOD_S, "timeoutSeconds": 3, "failureThreshold": failures}

    metrics = inputs.release.metrics.enabled
    pause_s = inputs.release.drain.pre_stop_seconds
    return {
        "name": WORKER_CONTAINER,
        "image": inputs.image or default_image(inputs),
        "command": ["premoe-worker"],
        "ports": [
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
            {"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
            {"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
            *([{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}] if metrics else []),
        ],
        "startupProbe": probe(math.ceil(startup_seconds(inputs) / PROBE_PERIOD_S)),
        "readinessProbe": probe(2),
        # A service of its own: a worker that drains is not ready, and must not be killed for it.
        "livenessProbe": probe(6, "liveness"),
        **({"lifecycle": {"preStop": {"sleep": {"seconds": pause_s}}}} if pause_s else {}),
    }


def _scraped(inputs: Inputs) -> dict[str, str]:
    """Annotations by which a Prometheus without its operator finds pods."""
    metrics = inputs.release.metrics
    if not (metrics.enabled and metrics.annotations):
        return {}
    return {f"prometheus.io/{key}": value for key, value in _SCRAPE.items()}


def _settings(inputs: Inputs) -> list[Json]:
    spec, release = inputs.spec, inputs.release
    engine, patterns = spec.engine, spec.patterns
    drain_s = spec.workers.drain_timeout_seconds
    values: dict[str, object] = {
        "HOST": release.listen_address,
        "PORT": GRPC_PORT,
        "ADMIN_HOST": release.listen_address,
        "ADMIN_PORT": ADMIN_PORT,
        "HEALTH_HOST": release.listen_address,
        "HEALTH_PORT": HEALTH_PORT,
        "METRICS_PORT": METRICS_PORT if release.metrics.enabled else None,
        "STORE": grpc_target(expert_store(inputs)),
        "RETRIEVAL": grpc_target(retrieval(inputs)),
        "OBJECT_STORE_URL": release.store_url if release.worker_object_store.read else None,
        "MODEL_ID": bare_digest(inputs.packed_model_id()),
        "MODEL_NAME": inputs.served_name,
        "BUDGET": spec.budget,
        # Left out where it is the worker's default: templates of before there was a choice stay as they are.
        "ALLOCATION": "uniform" if spec.allocation == "Uniform" else None,
        "GENERALIST_BUDGET": patterns.generalist_budget,
        "ON_UNKNOWN": patterns.on_unknown.lower(),
        "DENY": ",".join(patterns.deny) or None,
        "ENGINE": None if engine.name == "hf" else engine.name,
        "ENGINE_ARGUMENTS": _arguments(engine.arguments),
        "SLOTS": engine.slots,
        "SPARE": engine.spare,
        "HOST_MEMORY_BYTES": None if engine.host_memory is None else parse_bytes(engine.host_memory),
        "MAX_SEQUENCES": engine.max_sequences,
        "CONTEXT_LENGTH": engine.context_length,
        "MAX_TOKENS": engine.max_tokens,
        "QUEUE_LIMIT": engine.queue_limit,
        "THREADS": _threads(inputs),
        "DEVICE": worker_device(inputs),
        "RESIDENCY_DIR": RESIDENCY_FOLDER,
        "DRAIN_S": drain_s,
        "DRAIN_DELAY_S": release.drain.delay_seconds,
        "GRACE_S": drain_s,
        "MAX_CONNECTION_AGE_S": MAX_CONNECTION_AGE_S,
        "LOG_FORMAT": "json",
    }
    if transport(inputs) is not None:
        files = {"TLS_CERT": "tls.crt", "TLS_KEY": "tls.key", "TLS_CA": "ca.crt"}
        values |= {name: f"{TLS_FOLDER}/{file}" for name, file in files.items()}
        values["TLS_SERVER_NAME"] = release.tls.server_name
        values["STORE_SERVER_NAME"] = foreign_name(expert_store(inputs), release.expert_store)
        values["RETRIEVAL_SERVER_NAME"] = foreign_name(retrieval(inputs), release.retrieval)
        values["TLS_RELEASE"] = release.tls.release if release.tls.check_roles else None
    return env_list({f"{SETTINGS_PREFIX}{name}": value for name, value in values.items()})


def _redis(inputs: Inputs) -> list[Json]:
    """Optional, as the next two: a worker without these Secrets has its blobs from the expert store."""
    redis = inputs.release.worker_redis
    if not redis.secret_name:
        return []
    secret = {"name": redis.secret_name, "key": redis.key, "optional": True}
    return [{"name": f"{SETTINGS_PREFIX}REDIS_URL", "valueFrom": {"secretKeyRef": secret}}]


def _object_store_keys(inputs: Inputs) -> tuple[Json, ...]:
    store = inputs.release.worker_object_store
    return ({"secretRef": {"name": store.secret_name, "optional": True}},) if store.read and store.secret_name else ()


def _arguments(given: Json) -> str:
    """As the worker reads them. A $ is doubled: $(NAME) would be a variable's value to the kubelet."""
    return json.dumps(given, sort_keys=True).replace("$", "$$") if given else ""


def _threads(inputs: Inputs) -> int | None:
    return inputs.spec.engine.threads or thread_count(inputs.spec.workers.resources)
