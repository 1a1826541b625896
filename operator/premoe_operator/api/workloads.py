"""What the pods of a PrunedModel get: workers, and the Jobs before them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from premoe_operator.api.fields import (
    AnnotationMap,
    DnsLabel,
    DnsName,
    LabelMap,
    OptionalDnsName,
    Part,
    Quantity,
    Size,
)
from premoe_operator.api.placement import Placement, WorkerPlacement


class SecretName(Part):
    """A Secret in the same namespace: pods use it, the operator does not read it."""

    name: DnsName
    """Name of the Secret."""


class SecretKey(SecretName):
    """A key of a Secret in the same namespace: pods use it, the operator does not read it."""

    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "token"
    """Key that holds the text."""


GPU_NAME = "^.+/(gpu([.-].*)?|mig-.+)$"
"""Resources that are GPUs for torch, or parts of one, whoever makes them."""


class ResourceClaim(Part):
    """A claim for a dynamically allocated device (Kubernetes resource.k8s.io)."""

    name: DnsLabel
    """Name by which the worker container uses it."""
    template: DnsName
    """ResourceClaimTemplate in the same namespace."""


class Resources(Part):
    """CPU, memory and devices of one pod; any resource name is passed through."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the scheduler sets aside, for example cpu, memory, nvidia.com/gpu."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the pod may use at most."""
    claims: Annotated[list[ResourceClaim], Field(max_length=8)] = []
    """Dynamically allocated devices."""


class Rollout(Part):
    """How a changed worker template replaces running workers."""

    type: Literal["Surge", "InPlace", "Recreate"] = "Surge"
    """Surge: one new worker first (needs room for it). InPlace: one worker less meanwhile. Recreate: all at once."""
    progress_deadline_seconds: Annotated[int, Field(ge=60, le=86_400)] = 1800
    """Seconds without progress after which the rollout counts as stuck; more than start-up plus drain, and raised to
    that where the start-up is worked out."""
    revision: Annotated[str, Field(max_length=64)] = ""
    """Free text; a change rolls the workers to the operator's present template and default image."""


class Workers(Part):
    """The pods that serve the model."""

    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Worker pods; the scale subresource writes here."""
    resources: Resources = Resources()
    """CPU, memory and devices of each."""
    placement: WorkerPlacement = WorkerPlacement()
    """Where they may run."""
    rollout: Rollout = Rollout()
    """How a change replaces them."""
    startup_timeout_seconds: Annotated[int, Field(ge=10, le=86_400)] | None = None
    """Seconds that a worker may take to load the model and prove one forward; default: 600, and one for every 64 MiB
    that it loads."""
    drain_timeout_seconds: Annotated[int, Field(ge=1, le=3_600)] = 60
    """Seconds that running requests get to end when a worker stops; at least the longest generation."""
    service_account_name: OptionalDnsName = ""
    """ServiceAccount that exists already (workload identity); empty: one is created."""
    service_account_annotations: AnnotationMap = {}
    """Annotations of the created ServiceAccount."""
    labels: LabelMap = {}
    """Labels added to the pods."""
    annotations: AnnotationMap = {}
    """Annotations added to the pods."""
    scratch_size: Size = "2Gi"
    """Limit of each writable folder (temporary files, compiler caches)."""
    shared_memory_size: Size | None = None
    """Size of /dev/shm, a memory volume that counts in the memory limit; default: none."""


class Pack(Part):
    """What the Job that packs has otherwise than the others."""

    resources: Resources | None = None
    """CPU and memory of its pod; default: those of jobs.resources, without the devices."""
    placement: Placement | None = None
    """Where it may run; default: as jobs.placement."""
    service_account_name: OptionalDnsName = ""
    """ServiceAccount that exists already; empty: that of the other Jobs, unless annotations are given here."""
    service_account_annotations: AnnotationMap = {}
    """Annotations of a ServiceAccount created for packing alone."""


class Jobs(Part):
    """The Jobs that pack, profile and build patterns."""

    resources: Resources = Resources()
    """CPU, memory and devices of each pod; only profiling gets the devices."""
    placement: Placement | None = None
    """Where they may run; default: as the workers, save for their spread and their affinity to pods."""
    service_account_name: OptionalDnsName = ""
    """ServiceAccount that exists already and may write the store; empty: that of the workers, unless annotations are
    given here."""
    service_account_annotations: AnnotationMap = {}
    """Annotations of a ServiceAccount created for Jobs alone, so that workers need no right to write the store."""
    store_secret_ref: SecretName | None = None
    """Secret whose keys (AWS_ACCESS_KEY_ID and so on) Jobs get as environment; default: the release's."""
    pack: Pack = Pack()
    """What the Job that packs has otherwise."""
    parallelism: Annotated[int, Field(ge=1, le=64)] = 1
    """Tasks profiled at a time."""
    retries: Annotated[int, Field(ge=0, le=10)] = 3
    """Tries after a failure that another try may mend; bad input is not tried again."""
    timeout_seconds: Annotated[int, Field(ge=60, le=604_800)] = 86_400
    """Seconds that a Job may take."""
    scratch_size: Size = "2Gi"
    """Limit of each writable folder (temporary files, compiler caches)."""
    labels: LabelMap = {}
    """Labels added to the Jobs and their pods, for example a queue's."""
