"""What one reconcile knows: the PrunedModel, its children, and what was read about them. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from premoe_operator.api.reasons import Reason
from premoe_operator.kube.objects import Json, ObjectKey


@dataclass(frozen=True, slots=True)
class PackFacts:
    """What the manifest of a pack says about the model."""

    model_id: str
    family: str
    layer_experts: tuple[int, ...]
    """Experts of every layer with routed ones."""
    top_k: int
    blob_bytes: int
    """Bytes of one expert."""
    skeleton_bytes: int = 0
    """Bytes of everything but the experts."""


@dataclass(frozen=True, slots=True)
class StoreFailure:
    """Why there are no facts: ManifestNotFound or StoreUnreachable, and one sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class WorkerPreload:
    """What one worker says about the tasks that it keeps resident."""

    wanted: tuple[str, ...] = ()
    """Tasks of the list that it has read."""
    done: tuple[str, ...] = ()
    problem: str = ""
    """Why these are not all, where more time alone does not help."""
    has_answered: bool = True
    """If not, ``problem`` says why."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API refused a write of this child."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that ``plan`` decides on. ``None`` and empty mean: not asked for, or nothing there."""

    model: Json
    children: Mapping[ObjectKey, Json] = field(default_factory=dict)
    """Objects with a child's label, owner reference or name; foreign ones too, so that they are left alone."""
    pods: tuple[Json, ...] | None = None
    events: tuple[Json, ...] = ()
    """Warning events about those pods and about Jobs without pods."""
    store: PackFacts | StoreFailure | None = None
    missing_sources: tuple[str, ...] = ()
    """One sentence for each ConfigMap of calibration data that is not there."""
    rivals: tuple[Json, ...] = ()
    """Other PrunedModels with the same served name."""
    same_weights: tuple[Json, ...] = ()
    """Other PrunedModels with tasks over the same pack."""
    preloads: tuple[WorkerPreload, ...] | None = None
    """What workers keep resident."""
    refusals: Mapping[ObjectKey, Refusal] = field(default_factory=dict)


class WorkersAsked(NamedTuple):
    """Workers, and what they are asked about."""

    host: str
    port: int
    encrypted: bool
    """Whether they talk mutual TLS."""
    tasks: tuple[str, ...]
    """Those to keep resident."""
    ready: int
    """How many there are."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What has to be read beyond the watches. All empty for a healthy PrunedModel."""

    pods: bool = False
    events_of: tuple[Json, ...] = ()
    """Jobs without pods, whose events may say why."""
    manifest_of: str = ""
    """Id of a pack whose facts are not known yet."""
    store_address: str = ""
    sources: tuple[tuple[str, str], ...] = ()
    """Names and keys of ConfigMaps that a Job is going to read."""
    certificate: ObjectKey | None = None
    """Wanted; read directly where Certificates are not watched."""
    workers: WorkersAsked | None = None
    """Workers to ask what they keep resident."""
