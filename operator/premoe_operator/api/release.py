"""What a Helm release says about every worker and Job: images, services, transport security, tracing, egress.

One JSON file, camelCase, which the chart mounts. The operator reads it at its start; a change of the chart's values
restarts the operator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from premoe_operator.api.fields import (
    DnsLabel,
    DnsName,
    Image,
    LabelMap,
    OptionalDnsName,
    OtlpEndpoint,
    Part,
    Ratio,
)
from premoe_operator.api.resources import IssuerRef
from premoe_runtime.formats.errors import InvalidInput

GRPC_PORT = 50051
BLOBS_PORT = 50055

_GO_HOURS = r"^[0-9]+h([0-9]+m)?([0-9]+s)?$"


class ReleaseService(Part):
    """A service of the release."""

    name: DnsLabel
    """Name of the Service."""
    namespace: DnsLabel
    """Its namespace."""
    port: Annotated[int, Field(ge=1, le=65535)] = GRPC_PORT
    """Its gRPC port, the same in Service and pods."""
    pod_labels: LabelMap = {}
    """Labels of its pods, for egress rules; none: any pod of its namespace."""

    @property
    def host(self) -> str:
        """Its name in the cluster's DNS."""
        return f"{self.name}.{self.namespace}.svc"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class ReleaseExpertStore(ReleaseService):
    """The expert store of the release."""

    blobs_port: Annotated[int, Field(ge=1, le=65535)] = BLOBS_PORT
    """Port of its pods for blobs over HTTP."""


class Callers(Part):
    """Pods of the release that may call workers."""

    namespace: DnsLabel
    """Their namespace."""
    pod_labels: LabelMap = {}
    """Their labels; none: any pod of the namespace."""


class ReleaseGateway(Callers):
    """The gateway of the release, which calls workers."""

    url: Annotated[str, Field(max_length=512)] = ""
    """Where clients in the cluster reach it."""


class ReleaseTls(Part):
    """Transport security of PrunedModels that name none."""

    mode: Literal["Disabled", "Secret", "CertManager"] = "Disabled"
    """Plain text, a Secret in the PrunedModel's namespace, or certificates of a cert-manager issuer."""
    secret_name: OptionalDnsName = ""
    """Secret of mode Secret."""
    issuer_ref: IssuerRef | None = None
    """Issuer of mode CertManager."""
    server_name: OptionalDnsName = ""
    """A name that every certificate of the release carries, workers' included, and that clients verify; empty: the
    address called. Behind one Service that finds workers of many models, no address is in all certificates."""
    release: OptionalDnsName = ""
    """Name of the release in the URI premoe://RELEASE/worker of workers' certificates; empty: they get none."""
    duration: Annotated[str, Field(pattern=_GO_HOURS)] = "2160h"
    """Life of workers' certificates, as Go writes durations."""
    renew_before: Annotated[str, Field(pattern=_GO_HOURS)] = "720h"
    """Time before its end at which a certificate is renewed."""
    check_roles: bool = False
    """Whether workers admit callers only in the role that their certificates carry."""

    @model_validator(mode="after")
    def _complete(self) -> ReleaseTls:
        if self.mode == "Secret" and not self.secret_name:
            raise ValueError("mode Secret needs secretName")
        if self.mode == "CertManager" and self.issuer_ref is None:
            raise ValueError("mode CertManager needs issuerRef")
        if self.check_roles and not self.release:
            raise ValueError("checkRoles needs release")
        return self


class ReleaseTracing(Part):
    """Traces of PrunedModels that name no endpoint."""

    endpoint: OtlpEndpoint = ""
    """OTLP endpoint; empty: no traces."""
    sample_ratio: Ratio | None = None
    """Share of requests traced when the caller did not decide, as a decimal string."""


class ReleaseMetrics(Part):
    """Metrics of workers."""

    enabled: bool = False
    """Serve them, as plain HTTP on a port of their own."""
    annotations: bool = False
    """Annotate the pods for a Prometheus that finds them by that."""
    peers: list[dict[str, Any]] = []
    """Who may read them, as NetworkPolicyPeers; none: everybody in the cluster."""


class WorkerRedis(Part):
    """The expert stores' Redis, which workers may read blobs from."""

    secret_name: OptionalDnsName = ""
    """Secret in the PrunedModel's namespace with its address; empty: workers do not read it. Workers whose namespace
    has no such Secret run without."""
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$")] = "url"
    """Key of that Secret."""


class WorkerObjectStore(Part):
    """Object storage, which workers may read blobs from when no expert store answers."""

    read: bool = False
    """Whether they do."""
    secret_name: OptionalDnsName = ""
    """Secret in the PrunedModel's namespace whose AWS_* keys workers get as environment; empty: workload identity."""


class PodTemplatePolicy(Part):
    """What ``spec.podTemplate`` may set."""

    allowed_paths: list[str] = []
    """Paths such as spec.affinity or spec.containers[premoe-worker].env; none: the hatch is off."""


class Egress(Part):
    """Where pods may connect to, as NetworkPolicy egress rules. None: chosen from what else is known."""

    dns: list[dict[str, Any]] | None = None
    """Cluster DNS; default: port 53 of pods labelled k8s-app=kube-dns in kube-system."""
    s3: list[dict[str, Any]] | None = None
    """Object storage, for Jobs, and workers that read it; default: port 443 anywhere."""
    hub: list[dict[str, Any]] | None = None
    """The model hub, for Jobs that pack from it; default: port 443 anywhere."""
    identity: list[dict[str, Any]] = []
    """Pod identity agents and metadata servers, for Jobs, and workers that read object storage."""
    redis: list[dict[str, Any]] | None = None
    """Redis, for workers that read it; default: port 6379 anywhere."""
    otlp: list[dict[str, Any]] | None = None
    """Trace collector; default: the endpoint's port anywhere."""


class Drain(Part):
    """Seconds for which a stopping worker still serves, so that callers learn first."""

    pre_stop_seconds: Annotated[int, Field(ge=0, le=300)] = 5
    """From the pod's deletion to SIGTERM: endpoints and kube-proxy rules change meanwhile."""
    delay_seconds: Annotated[int, Field(ge=0, le=300)] = 30
    """From SIGTERM, health NOT_SERVING, to the end of the listener: at least the cluster DNS's cache time."""


class Release(Part):
    """Release-wide defaults and rules."""

    worker_image: Annotated[Image, Field(min_length=1)]
    """Image of workers and Jobs."""
    vllm_image: Image = ""
    """Image of workers whose engine is named vllm; empty: that of the others."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of these images."""
    image_pull_secrets: list[DnsName] = []
    """Names of pull Secrets in the PrunedModel's namespace."""
    store_url: Annotated[str, Field(min_length=1, max_length=512)]
    """Object store of packs, profiles and patterns: s3://bucket/prefix."""
    store_secret_name: OptionalDnsName = ""
    """Secret in the PrunedModel's namespace whose AWS_* keys Jobs get as environment; empty: workload identity."""
    expert_store: ReleaseExpertStore
    """Expert store of PrunedModels that name none."""
    retrieval: ReleaseService
    """Retrieval service of PrunedModels that name none."""
    gateway: ReleaseGateway | None = None
    """Gateway, which calls workers' gRPC port."""
    operator: Callers | None = None
    """Operator, which asks workers what is resident; the only one that reaches their admin port."""
    tls: ReleaseTls = ReleaseTls()
    """Transport security of PrunedModels that name none."""
    tracing: ReleaseTracing = ReleaseTracing()
    """Traces of PrunedModels that name no endpoint."""
    metrics: ReleaseMetrics = ReleaseMetrics()
    """Metrics of workers."""
    worker_redis: WorkerRedis = WorkerRedis()
    """Redis that workers read."""
    worker_object_store: WorkerObjectStore = WorkerObjectStore()
    """Object storage that workers read without an expert store."""
    drain: Drain = Drain()
    """How long a stopping worker still serves."""
    cluster_domain: DnsName = "cluster.local"
    """DNS domain of the cluster, for names in certificates."""
    listen_address: Annotated[str, Field(pattern=r"^[0-9A-Fa-f:.]+$")] = "0.0.0.0"
    """Address that workers listen on: "::" in clusters with IPv6 only."""
    pod_security_context: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    """Security context of the pods of workers and Jobs."""
    extra_env: list[dict[str, Any]] = []
    """EnvVars of workers and Jobs; one with a name of ours replaces it."""
    extra_volumes: list[dict[str, Any]] = []
    """Volumes of workers and Jobs."""
    extra_volume_mounts: list[dict[str, Any]] = []
    """Mounts of those volumes."""
    pod_template: PodTemplatePolicy = PodTemplatePolicy()
    """What spec.podTemplate may set."""
    egress: Egress = Egress()
    """Where pods may connect to."""


def read_release(path: Path) -> Release:
    """Read the release file. Raises InvalidInput (RELEASE_INVALID) with one line for a missing or wrong file."""
    try:
        return Release.model_validate_json(path.read_bytes(), by_name=False)
    except OSError as error:
        raise InvalidInput(f"release file {path}: {error.strerror or error}", reason="RELEASE_INVALID") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the whole file"
        raise InvalidInput(f"release file {path}: {where}: {fault['msg']}", reason="RELEASE_INVALID") from None
