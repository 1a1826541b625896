"""What the operator asks of its surroundings, and how those fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from premoe_operator.kube.kinds import Kind
from premoe_operator.kube.objects import Json


class ApiFailure(Exception):
    """The Kubernetes API refused a call, or did not answer it (``code`` 0)."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message


class FenceClosed(Exception):
    """The Lease is no longer surely ours, so nothing may be written."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A full list, as of one version."""

    items: tuple[Json, ...]
    version: int


class Cluster(Protocol):
    """The Kubernetes API. Every method raises ApiFailure; those that write raise FenceClosed too."""

    async def list(
        self, kind: Kind, namespace: str | None, *, label_selector: str = "", field_selector: str = ""
    ) -> Listed: ...

    async def get(self, kind: Kind, namespace: str, name: str) -> Json | None: ...

    async def create(self, obj: Json) -> Json:
        """POST: never takes over an object that exists (409)."""
        ...

    async def apply(self, obj: Json) -> Json:
        """Server-side apply to the object with ``metadata.uid``; 409 when another one has its name now."""
        ...

    async def apply_status(self, obj: Json) -> Json: ...

    async def merge_patch(self, kind: Kind, namespace: str, name: str, patch: Json) -> Json: ...

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        """Delete exactly the object with ``uid``; done when it is gone already."""
        ...

    async def replace(self, obj: Json) -> Json: ...


@dataclass(frozen=True, slots=True)
class PackFacts:
    """What the manifest of a pack says about the model."""

    model_id: str
    family: str
    layers: int
    experts: int
    top_k: int
    blob_bytes: int
    """Bytes of one expert."""


@dataclass(frozen=True, slots=True)
class StoreFailure:
    """Why there are no facts: ManifestNotFound or StoreUnreachable, and one sentence."""

    reason: str
    message: str


class ExpertStore(Protocol):
    """The expert store, asked for manifests only."""

    async def facts(self, address: str, model_id: str) -> PackFacts | StoreFailure: ...


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


class Workers(Protocol):
    """The workers behind a Service's name."""

    async def preloads(self, host: str, port: int, *, encrypted: bool) -> tuple[WorkerPreload, ...]:
        """One entry for each worker, or one for all when the name stands for nobody. Never raises."""
        ...
