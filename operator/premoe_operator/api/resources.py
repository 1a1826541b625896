"""PrunedModel (premoe.dev/v1alpha1): the spec as frozen values. The CRD is generated from these classes.

Field descriptions are the docstrings under the fields; `kubectl explain` shows them. Rules that need no outside
knowledge are CEL rules, checked by the API server: ``tools/crd_rules.py`` holds them. Rules that need the model's
facts are checked by ``decide/acceptance.py`` and end in a condition.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from premoe_operator.api.fields import (
    DNS_LABEL,
    AnnotationMap,
    BudgetText,
    DnsLabel,
    DnsName,
    Image,
    LabelMap,
    OptionalDnsName,
    OtlpEndpoint,
    Part,
    Quantity,
    Ratio,
    Size,
)
from premoe_operator.api.placement import Placement, WorkerPlacement
from premoe_runtime.formats.errors import InvalidInput

GROUP = "premoe.dev"
VERSION = "v1alpha1"
KIND = "PrunedModel"
PLURAL = "prunedmodels"

MAX_NAME = 40
"""Longest name of a PrunedModel: child names add suffixes and must stay within 63 characters."""


class SecretName(Part):
    """A Secret in the same namespace: pods use it, the operator does not read it."""

    name: DnsName
    """Name of the Secret."""


class SecretKey(SecretName):
    """A key of a Secret in the same namespace: pods use it, the operator does not read it."""

    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "token"
    """Key that holds the text."""


class Model(Part):
    """The checkpoint, pinned."""

    uri: Annotated[str, Field(min_length=6, max_length=512, pattern=r"^[!-~]+$")]
    """Where the checkpoint lies: hf://org/name, s3://bucket/prefix or pvc://claim/folder. Another one is packed and
    profiled beside the one that serves; workers move when it is ready."""
    revision: Annotated[str, Field(max_length=40, pattern=r"^([0-9a-f]{40})?$")] = ""
    """Commit of the Hub repository, 40 hexadecimal digits; required for hf://, refused elsewhere. Another one is
    a rollout, as another uri is."""
    model_id: Annotated[str, Field(max_length=71, pattern=r"^(blake3:[0-9a-f]{64})?$")] = ""
    """Expected id of the pack, blake3:…; packing a checkpoint with another content then fails. Empty: any, then the
    same for as long as uri and revision stay."""
    served_name: Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9][-A-Za-z0-9._/:]*)?$")] = ""
    """Name that clients ask for; empty: the name of the PrunedModel. Unique within what one gateway serves, but for
    takesOverFrom."""
    takes_over_from: Annotated[str, Field(max_length=MAX_NAME, pattern=rf"^({DNS_LABEL})?$")] = ""
    """Older PrunedModel of this namespace with the same served name: this one is prepared beside it, and once it has
    been Ready for a while the older one's workers stop. They come back if this one is deleted or suspended."""
    token_secret_ref: SecretKey | None = None
    """Token of the Hub, for a checkpoint that is private or gated; the pack Job alone gets it, as HF_TOKEN."""


class ConfigMapKey(Part):
    """A key of a ConfigMap in the same namespace."""

    name: DnsName
    """Name of the ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key that holds the text."""


class Calibration(Part):
    """Prompts of a task as JSON lines. Exactly one source."""

    config_map: ConfigMapKey | None = None
    """A key of a ConfigMap."""
    uri: Annotated[str, Field(max_length=512, pattern=r"^(s3://[a-z0-9][-.a-z0-9]*/[!-~]+)?$")] = ""
    """An object: s3://bucket/key."""


class Task(Part):
    """One task to profile."""

    name: DnsLabel
    """Name of the task; patterns carry it."""
    calibration: Calibration
    """Where its prompts are."""
    samples: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """At most so many of its prompts; default: all."""


class Patterns(Part):
    """Which experts each task keeps."""

    tasks: Annotated[list[Task], Field(max_length=64)] = []
    """Tasks to profile. None: patterns that exist in the store already are used as they are."""
    metric: Literal["Impact", "PEU", "SEER", "Norm", "TCESS", "Counts", "Random"] = "Impact"
    """Score that ranks the experts. Impact compares between layers, so budgets may be shared over them."""
    answers: Literal["Given", "Own", "None"] = "Given"
    """Profile prompts with the answers of the calibration data, with the model's own, or alone."""
    generalist_budget: BudgetText | None = None
    """Budget of the generalist; default: that of the model."""
    on_unknown: Literal["Generalist", "Full", "Reject"] = "Generalist"
    """What runs when no stored task fits; Full needs slots for all experts."""
    preload: Annotated[list[DnsLabel], Field(max_length=64)] = []
    """Tasks whose experts each worker brings in before it is asked for them, as far as slots reach."""


class Engine(Part):
    """The software that runs the model."""

    name: Literal["hf"] = "hf"
    """Engine: hf, the transformers modelling code."""
    image: Image = ""
    """Worker image; empty: the release's. Pinned in status until the spec changes."""
    device: Annotated[str, Field(max_length=16, pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = "auto"
    """Torch device of the workers; auto: cuda where workers.resources have a GPU in their limits or a claim, else cpu.
    Jobs go by their own resources."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads; default: as many as the CPU limit says, else torch's choice."""
    slots: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Expert slots per layer on average; default: those of the largest budget and the spare ones."""
    spare: Annotated[int, Field(ge=0, le=4096)] = 2
    """Slots per layer on average beside those of a budget, so that the next pattern can come in while one runs."""
    max_sequences: Annotated[int, Field(ge=1, le=4096)] = 8
    """Sequences in one batch."""
    context_length: Annotated[int, Field(ge=8, le=16_777_216)] | None = None
    """Longest prompt and answer together, in tokens; default: the engine's."""
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 256
    """Tokens of an answer whose request names no number."""
    host_memory: Size | None = None
    """Host memory for expert blobs outside slots, for example 8Gi; default: a blob a slot, within a quarter of
    free memory."""
    queue_limit: Annotated[int, Field(ge=0, le=1_048_576)] = 256
    """Requests that may wait in a worker; more are refused with RESOURCE_EXHAUSTED."""


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


class ServiceRef(Part):
    """A PreMoE service in this cluster, of this release or of one that names it among its `guests`."""

    name: DnsLabel
    """Name of the Service."""
    namespace: DnsLabel | None = None
    """Its namespace; default: that of the PrunedModel."""
    port: Annotated[int, Field(ge=1, le=65535)] = 50051
    """Its gRPC port."""


class Peer(Part):
    """Pods that may call the workers."""

    namespace_labels: LabelMap = {}
    """Labels of their namespace; none: the namespace of the PrunedModel."""
    pod_labels: LabelMap = {}
    """Labels of the pods; none: every pod of those namespaces."""


class IssuerRef(Part):
    """A cert-manager issuer."""

    name: DnsName
    """Name of the issuer."""
    kind: Literal["Issuer", "ClusterIssuer"] = "Issuer"
    """Namespaced or not."""
    group: DnsName = "cert-manager.io"
    """API group of the issuer."""


class Tls(Part):
    """Mutual TLS between workers and everything that talks to them."""

    mode: Literal["Release", "Mutual", "Disabled"] = "Release"
    """Release: as the Helm release is set up. Mutual: with the Secret or issuer named here. Disabled: plain text."""
    secret_name: OptionalDnsName = ""
    """Secret with tls.crt, tls.key and ca.crt, for mode Mutual."""
    issuer_ref: IssuerRef | None = None
    """Issuer of a certificate, for mode Mutual."""


class Access(Part):
    """Who may call the workers, and how."""

    network_policy: Literal["Restricted", "None"] = "Restricted"
    """Restricted: only the release's gateway, the peers below and what workers need themselves. None: no policy."""
    peers: Annotated[list[Peer], Field(max_length=16)] = []
    """Further pods that may call the workers."""
    tls: Tls = Tls()
    """Transport security."""


class Tracing(Part):
    """OpenTelemetry export of the workers and Jobs."""

    endpoint: OtlpEndpoint = ""
    """OTLP endpoint; empty: the release's."""
    sample_ratio: Ratio | None = None
    """Share of requests traced when the caller did not decide, as a decimal string; default: the release's."""


class Experts(Part):
    """A budget in numbers."""

    active: Annotated[int, Field(ge=1, le=99_999)]
    """Experts activated per token."""
    kept: Annotated[int, Field(ge=1, le=99_999)]
    """Experts kept per layer on average."""


class PrunedModelSpec(Part):
    """A model served with a part of its experts resident."""

    model: Model
    """The checkpoint, pinned."""
    budget: BudgetText = ""
    """Experts activated per token out of experts kept per layer on average, for example 4/16. This or experts."""
    experts: Experts | None = None
    """The budget in numbers, in place of the text."""
    allocation: Literal["Shared", "Uniform"] = "Shared"
    """How these experts, and the slots, spread over the layers: as the pattern set says, or equally many in each."""
    patterns: Patterns = Patterns()
    """Which experts each task keeps."""
    engine: Engine = Engine()
    """The software that runs the model."""
    workers: Workers = Workers()
    """The pods that serve it."""
    jobs: Jobs = Jobs()
    """The Jobs that pack and profile it."""
    image_pull_secrets: Annotated[list[SecretName], Field(max_length=8)] = []
    """Pull Secrets of workers and Jobs, beside the release's."""
    expert_store_ref: ServiceRef | None = None
    """Expert store; default: the release's."""
    retrieval_ref: ServiceRef | None = None
    """Retrieval service; default: the release's."""
    access: Access = Access()
    """Who may call the workers."""
    tracing: Tracing = Tracing()
    """Where traces go."""
    pod_template: Annotated[dict[str, Any], Field(max_length=2)] = {}
    """Partial pod template merged into the workers', containers, volumes and env by name. Off unless the administrator
    allows it, and then only the fields on the release's list; at most 16 KiB."""
    suspend: bool = False
    """Stop the workers and suspend the Jobs, keeping everything else."""

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, document: Any) -> Any:
        """Within the operator there is the text alone, so that either way means the same."""
        if not isinstance(document, dict):
            return document
        experts = document.get("experts")
        if not isinstance(experts, dict):
            return document
        found = Experts.model_validate(experts)
        rest = {name: value for name, value in document.items() if name != "experts"}
        return {**rest, "budget": rest.get("budget") or f"{found.active}/{found.kept}"}

    @model_validator(mode="after")
    def _some_budget(self) -> PrunedModelSpec:
        if not self.budget:
            raise ValueError("give budget or experts")
        return self


def parse_spec(document: object) -> PrunedModelSpec:
    """The spec of an object that the API server took. Raises InvalidInput (SPEC_INVALID) in one line.

    Happens where the CRD in the cluster is of another version than this operator.
    """
    try:
        return PrunedModelSpec.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(["spec", *map(str, fault["loc"])])
        raise InvalidInput(f"{where}: {fault['msg']}", reason="SPEC_INVALID") from None
