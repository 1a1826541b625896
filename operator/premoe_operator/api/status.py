"""PrunedModel's status as frozen values. The CRD is generated from these classes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from premoe_operator.api.fields import Part


class Condition(Part):
    """A condition as metav1.Condition defines it."""

    type: Annotated[str, Field(max_length=63)]
    """What is said."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=64)]
    """One CamelCase word out of a fixed list; docs/troubleshooting.md explains each."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """One sentence."""
    last_transition_time: Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
    """When the status last changed."""
    observed_generation: Annotated[int, Field(ge=0)]
    """Generation of the spec that this is about."""


class Resolved(Part):
    """What the pins and defaults came out as."""

    model_id: str = ""
    """Id of the pack, blake3:…"""
    source: str = ""
    """Where that was packed from: uri, and revision behind an @."""
    pattern_set: str = ""
    """Id of the live pattern set, blake3:…"""
    family: str = ""
    """Model family."""
    layers: int = 0
    """Layers with routed experts."""
    experts: int = 0
    """Experts per layer; of the one that has most, where they differ."""
    layer_experts: Annotated[list[int], Field(max_length=1000)] = []
    """Experts of every layer with routed ones, where they differ."""
    top_k: int = 0
    """Experts that the unpruned model activates per token."""
    expert_bytes: int = 0
    """Bytes of all routed experts."""
    skeleton_bytes: int = 0
    """Bytes of everything but the routed experts."""
    resident_bytes: int = 0
    """Bytes of one worker's expert slots in all layers together."""
    startup_seconds: int = 0
    """Seconds that a worker may take to start, as the spec says or worked out from what it loads."""
    image: str = ""
    """Worker image in use."""
    spec_hash: str = ""
    """Hash of everything in the spec that the worker template depends on."""
    template: str = ""
    """ControllerRevision that holds the worker template in use."""


class Progress(Part):
    """How far the preparation is."""

    pack: str = ""
    """Packing: Pending, Running, Complete or Failed."""
    profiled: int = 0
    """Tasks profiled."""
    tasks: int = 0
    """Tasks to profile."""
    patterns: str = ""
    """Building the pattern set: Pending, Running, Complete or Failed."""


class PreloadStatus(Part):
    """How many of the tasks to preload are resident."""

    tasks: int = 0
    """Tasks to preload."""
    resident: int = 0
    """Those that every worker which answered has brought in; what requests displace comes back by itself."""
    workers: int = 0
    """Workers that answered."""
    message: str = ""
    """Why it is not all of them; empty while workers bring them in."""


class LastFailure(Part):
    """The latest failure of a pod."""

    pod: str
    """Name of the pod."""
    reason: str
    """Reason, as in conditions."""
    message: str = ""
    """What the process said last, one line."""
    exit_code: int | None = None
    """Exit code of the container, where it ended."""
    time: Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
    """When."""


class Endpoints(Part):
    """Where clients reach the workers."""

    grpc: str = ""
    """Target for gRPC clients, dns:///name.namespace.svc:port."""
    gateway: str = ""
    """URL of the release's gateway within the cluster, below which /v1 is."""
    served_name: str = ""
    """Name of the model that clients ask the gateway for."""


BEFORE_MAX = 16


class HandedOver(Part):
    """Who serves the name in place of this one."""

    name: str
    """Name of the PrunedModel."""
    uid: str
    """Its uid: another one of that name has to become Ready first."""
    before: Annotated[list[str], Field(max_length=BEFORE_MAX)] = []
    """Uids of those between the two that have had the name too and would get it back."""


class PrunedModelStatus(Part):
    """What the operator last saw."""

    observed_generation: int = 0
    """Generation of the spec that this status is about."""
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    """Ready (converged) and Available (at least one verified worker serves), and the parts they are made of."""
    replicas: int = 0
    """Worker pods that exist."""
    ready_replicas: int = 0
    """Workers that serve."""
    updated_replicas: int = 0
    """Workers of the present template."""
    selector: str = ""
    """Label selector of the workers, for autoscalers."""
    budget: str = ""
    """Experts activated per token out of experts kept per layer on average, a/b, whichever way the spec says it."""
    workers_summary: str = ""
    """Ready out of wanted workers, e.g. 2/2."""
    patterns_summary: str = ""
    """Profiled out of wanted tasks, e.g. 8/8."""
    reason: str = ""
    """Reason of Ready, for the table."""
    endpoints: Endpoints = Endpoints()
    """Where clients reach the workers."""
    serving_model_id: str = ""
    """Id of the pack that workers serve: another than resolved.modelId until they have moved to a changed model."""
    resolved: Resolved = Resolved()
    """What the pins and defaults came out as."""
    progress: Progress = Progress()
    """How far the preparation is."""
    preload: PreloadStatus | None = None
    """How many of the tasks to preload are resident; looked at every few minutes. None without such tasks."""
    handed_over: HandedOver | None = None
    """Who serves the name in place of this one; None: nobody."""
    last_failure: LastFailure | None = None
    """The latest failure of a pod."""
