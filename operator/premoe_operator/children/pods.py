"""What worker and Job pods have in common: the restricted security context, writable folders, environment, devices."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from premoe_operator.api.placement import Placement
from premoe_operator.api.workloads import GPU_NAME, Resources
from premoe_operator.children.inputs import Inputs
from premoe_operator.children.quantity import parse_quantity
from premoe_operator.kube.objects import Json

HOME = "/home/premoe"
CACHE = "/var/cache/premoe"


@dataclass(frozen=True, slots=True)
class PodShape:
    """The parts in which workers and Jobs differ."""

    container: Json
    """Name, arguments, ports, probes: everything but what ``pod_spec`` adds."""
    env: list[Json]
    volumes: list[Json]
    mounts: list[Json]
    resources: Resources
    placement: Placement
    account: str
    """Name of the ServiceAccount."""
    threads: int | None
    scratch_size: str
    shared_memory_size: str | None = None
    env_from: tuple[Json, ...] = ()
    env_of_spec: tuple[Json, ...] = ()
    """What the spec itself names, which the release does not replace."""


def pod_spec(inputs: Inputs, shape: PodShape) -> Json:
    """A pod that the ``restricted`` Pod Security Standard admits."""
    release, placement = inputs.release, shape.placement
    scratch, scratch_mounts = _scratch(shape)
    container: Json = {
        **shape.container,
        "imagePullPolicy": release.image_pull_policy,
        "env": merged_by_name(_process_env(shape.threads), shape.env, release.extra_env, shape.env_of_spec),
        "resources": _resources(shape.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*scratch_mounts, *shape.mounts, *release.extra_volume_mounts],
    }
    if shape.env_from:
        container["envFrom"] = list(shape.env_from)
    spec: Json = {
        "automountServiceAccountToken": False,
        "containers": [container],
        # A Service called premoe-worker would otherwise put PREMOE_WORKER_SERVICE_HOST among the worker's settings.
        "enableServiceLinks": False,
        "securityContext": release.pod_security_context,
        "serviceAccountName": shape.account,
        "volumes": [*scratch, *shape.volumes, *release.extra_volumes],
    }
    affinity = placement.affinity
    pull_secrets = [*release.image_pull_secrets, *(secret.name for secret in inputs.spec.image_pull_secrets)]
    optional: Json = {
        "affinity": None if affinity is None else affinity.model_dump(by_alias=True, exclude_defaults=True),
        "imagePullSecrets": [{"name": name} for name in dict.fromkeys(pull_secrets)],
        "nodeSelector": dict(placement.node_selector),
        "priorityClassName": placement.priority_class_name,
        "resourceClaims": [
            {"name": claim.name, "resourceClaimTemplateName": claim.template} for claim in shape.resources.claims
        ],
        "runtimeClassName": placement.runtime_class_name,
        "tolerations": [_without_empty(each.model_dump()) for each in placement.tolerations],
    }
    return {**spec, **_without_empty(optional)}


def thread_count(resources: Resources) -> int | None:
    """Whole CPUs of the limit, at least one; None without a limit."""
    limit = resources.limits.get("cpu")
    return None if limit is None else max(1, math.floor(parse_quantity(limit)))


def device_of(resources: Resources) -> str:
    """The torch device that such a pod has."""
    gpus = [name for name, count in resources.limits.items() if re.match(GPU_NAME, name) and parse_quantity(count)]
    return "cuda" if gpus or resources.claims else "cpu"


def worker_device(inputs: Inputs) -> str:
    """The torch device of the workers."""
    device = inputs.spec.engine.device
    return device_of(inputs.spec.workers.resources) if device == "auto" else device


def tracing_env(inputs: Inputs, service: str) -> list[Json]:
    """OTEL_* variables; none without an endpoint."""
    own, release = inputs.spec.tracing, inputs.release.tracing
    endpoint = own.endpoint or release.endpoint
    if not endpoint:
        return []
    ratio = own.sample_ratio or release.sample_ratio
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio} if ratio else {}
    who = "k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE),k8s.node.name=$(NODE_NAME)"
    return [
        # Kubernetes expands $(NAME) only of variables that stand before.
        _from_pod("POD_NAME", "metadata.name"),
        _from_pod("POD_NAMESPACE", "metadata.namespace"),
        _from_pod("NODE_NAME", "spec.nodeName"),
        *env_list(
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_SERVICE_NAME": service,
                "OTEL_RESOURCE_ATTRIBUTES": f"{who},premoe.model={inputs.owner.name}",
                **sampler,
            }
        ),
    ]


def env_list(values: Mapping[str, object]) -> list[Json]:
    """EnvVars; empty and missing values are left to the process's own defaults."""
    return [{"name": name, "value": str(value)} for name, value in values.items() if value not in (None, "")]


def merged_by_name(*lists: Iterable[Json]) -> list[Json]:
    """Lists whose items have names, one after the other; a later item replaces an earlier one of its name."""
    return list({item["name"]: item for items in lists for item in items}.values())


def _process_env(threads: int | None) -> list[Json]:
    return env_list(
        {
            # getpass.getuser() of torch and friends fails for a user id that /etc/passwd does not know.
            "USER": "premoe",
            "HOME": HOME,
            "TMPDIR": "/tmp",
            "XDG_CACHE_HOME": CACHE,
            "TRITON_CACHE_DIR": f"{CACHE}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
            # Idle OpenMP threads sleep instead of spinning: the limit is of CPU time, whoever uses it.
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": threads,
            # glibc writes past the cache only in huge copies; a swap is many copies of a few MiB nobody reads soon.
            "GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=131072",
        }
    )


def _scratch(shape: PodShape) -> tuple[list[Json], list[Json]]:
    """Writable folders beside the read-only root."""
    folders = {"tmp": "/tmp", "home": HOME, "cache": CACHE}
    volumes: list[Json] = [{"name": name, "emptyDir": {"sizeLimit": shape.scratch_size}} for name in folders]
    mounts: list[Json] = [{"name": name, "mountPath": path} for name, path in folders.items()]
    if shape.shared_memory_size is not None:
        memory = {"medium": "Memory", "sizeLimit": shape.shared_memory_size}
        volumes.append({"name": "shm", "emptyDir": memory})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return volumes, mounts


def _resources(resources: Resources) -> Json:
    return _without_empty(
        {
            "requests": dict(resources.requests),
            "limits": dict(resources.limits),
            "claims": [{"name": claim.name} for claim in resources.claims],
        }
    )


def _from_pod(name: str, field: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}


def _without_empty(document: Json) -> Json:
    return {key: value for key, value in document.items() if value not in ("", None, [], {})}
