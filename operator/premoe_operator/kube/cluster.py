"""What the operator asks of the Kubernetes API, and how that fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from premoe_operator.api.names import FIELD_MANAGER
from premoe_operator.kube.kinds import Kind
from premoe_operator.kube.objects import Json


class ApiFailure(Exception):
    """The Kubernetes API refused a call, or did not answer it (``code`` 0)."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    @property
    def is_missing_kind(self) -> bool:
        """Whether the API server serves no such kind: its group is unknown, or the kind within it."""
        said = ("404 page not found", "could not find the requested resource")
        return self.code == 404 and any(text in self.message for text in said)


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

    async def apply_status(self, obj: Json, *, manager: str = FIELD_MANAGER) -> Json:
        """Server-side apply of what ``manager`` says in the status, and of nothing else that it said before."""
        ...

    async def merge_patch(self, kind: Kind, namespace: str, name: str, patch: Json) -> Json: ...

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        """Delete exactly the object with ``uid``; done when it is gone already."""
        ...

    async def replace(self, obj: Json) -> Json: ...
