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
    BudgetText,
    DnsLabel,
    DnsName,
    Image,
    LabelMap,
    OptionalDnsName,
    OtlpEndpoint,
    Part,
    Ratio,
    Size,
)
from premoe_operator.api.workloads import Jobs, SecretKey, SecretName, Workers
from premoe_runtime.formats.errors import InvalidInput

GROUP = "premoe.dev"
VERSION = "v1alpha1"
KIND = "PrunedModel"
PLURAL = "prunedmodels"

MAX_NAME = 40
"""Longest name of a PrunedModel: child names add suffixes and must stay within 63 characters."""


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


UsualMetric = Literal["Impact", "PEU", "SEER", "Norm", "REAP", "TCESS", "Counts", "Random"]
"""Scores that every profile has; for each of the others tasks are profiled anew."""
_OfRouters = Literal["PEU-Sigmoid", "PEU-Exp", "TCESS-Positive", "All-Logits", "Act-Logits", "ECC", "EVTC"]
_OfOutputs = Literal["EAN", "MAN", "MSAN", "EASY-EP", "EAS", "EAE", "EAO", "ETS"]
_OfGradients = Literal["Sens", "Sens-Norm", "Taylor", "EGS", "EGE", "EGO", "EGN"]
_OfWeights = Literal["EWS", "RWN", "WSR", "EWN"]


class Patterns(Part):
    """Which experts each task keeps."""

    tasks: Annotated[list[Task], Field(max_length=64)] = []
    """Tasks to profile. None: patterns that exist in the store already are used as they are."""
    metric: Literal[UsualMetric, _OfRouters, _OfOutputs, _OfGradients, _OfWeights] = "Impact"
    """Score that ranks the experts, one of docs/scores.md. Another than Impact, PEU, SEER, Norm, REAP, TCESS, Counts or
    Random has every task profiled for it. Impact, Sens, Sens-Norm and Taylor compare between layers, so budgets may
    be shared over them. One that the model's family cannot give ends in the reason MetricUnsupported."""
    answers: Literal["Given", "Own", "None"] = "Given"
    """Profile prompts with the answers of the calibration data, with the model's own, or alone."""
    generalist_budget: BudgetText | None = None
    """Budget of the generalist; default: that of the model."""
    on_unknown: Literal["Generalist", "Full", "Reject"] = "Generalist"
    """What runs when no stored task fits; Full needs slots for all experts."""
    preload: Annotated[list[DnsLabel], Field(max_length=64)] = []
    """Tasks whose experts each worker brings in before it is asked for them, as far as slots reach."""
    deny: Annotated[list[DnsLabel], Field(max_length=63)] = []
    """Tasks whose own experts are masked out for every request, whatever it asks. Another list is a rollout. Workers
    that cannot tell these experts answer nothing."""


class Engine(Part):
    """The software that runs the model."""

    name: Literal["hf", "vllm", "auto"] = "hf"
    """Engine: hf, the transformers modelling code; vllm, which the release has an image of its own for; or auto, vllm
    where the image has it and it runs the model, else hf."""
    arguments: Annotated[dict[str, Any], Field(max_length=32)] = {}
    """Arguments of vLLM's own by their names there, for example enforce_eager: false; not for hf. A worker whose slots
    one would break, or that says what another field says, refuses to start."""
    image: Image = ""
    """Image of workers and Jobs; empty: the release's. Pinned in status until the spec changes."""
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
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Tokens of an answer whose request names no number; default: as many as the context has room for."""
    host_memory: Size | None = None
    """Host memory for expert blobs outside slots, for example 8Gi; default: a blob a slot, within a quarter of
    free memory."""
    queue_limit: Annotated[int, Field(ge=0, le=1_048_576)] = 256
    """Requests that may wait in a worker; more are refused with RESOURCE_EXHAUSTED."""


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
