"""Kubernetes objects as JSON: identity, ownership, digest. Pure.

An object is ours when its controller owner reference names the PrunedModel's uid. An annotation repeats that uid, so
that an object whose owner references somebody stripped can be told from a foreign one, and from one that a deleted
PrunedModel of the same name left behind.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from premoe_operator.api.names import ANNOTATION_APPLIED, ANNOTATION_OWNER
from premoe_operator.kube.kinds import PRUNED_MODEL, Kind, kind_of

Json: TypeAlias = dict[str, Any]  # objects of the API are passed through, whatever they hold

Ownership = Literal["ours", "stripped", "predecessor", "foreign"]


class ObjectKey(NamedTuple):
    """Where an object is."""

    kind: Kind
    namespace: str
    name: str


class ModelKey(NamedTuple):
    """Which PrunedModel."""

    namespace: str
    name: str


def key_of(obj: Mapping[str, Any]) -> ObjectKey:
    return ObjectKey(kind_of(dict(obj)), str(obj["metadata"].get("namespace", "")), str(obj["metadata"]["name"]))


def model_key(model: Mapping[str, Any]) -> ModelKey:
    return ModelKey(str(model["metadata"].get("namespace", "")), str(model["metadata"]["name"]))


def age(model: Mapping[str, Any]) -> tuple[str, str]:
    """Of two PrunedModels the older one's is less: by creation, and by uid within one second."""
    return str(model["metadata"].get("creationTimestamp", "")), uid_of(model)


def uid_of(obj: Mapping[str, Any]) -> str:
    return str(obj.get("metadata", {}).get("uid", ""))


def version_of(obj: Mapping[str, Any]) -> int:
    """The resource version as a number: comparable within a kind, as Kubernetes promises since 1.35."""
    text = str(obj.get("metadata", {}).get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


def annotation(obj: Mapping[str, Any], name: str) -> str:
    return str((obj.get("metadata", {}).get("annotations") or {}).get(name, ""))


def is_deleting(obj: Mapping[str, Any]) -> bool:
    return bool(obj.get("metadata", {}).get("deletionTimestamp"))


def controller_of(obj: Mapping[str, Any]) -> Json | None:
    """The owner reference that controls the object."""
    references: list[Json] = obj.get("metadata", {}).get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)


def ownership(obj: Mapping[str, Any], owner: Mapping[str, Any]) -> Ownership:
    """Whose the object is, seen from the PrunedModel ``owner``.

    ``stripped`` is ours without its owner reference; ``predecessor`` belongs to a deleted PrunedModel of that name,
    and garbage collection will take it.
    """
    controller = controller_of(obj)
    if controller is None:
        return "stripped" if annotation(obj, ANNOTATION_OWNER) == uid_of(owner) else "foreign"
    if controller.get("uid") == uid_of(owner):
        return "ours"
    same_name = controller.get("kind") == PRUNED_MODEL.name and controller.get("name") == owner["metadata"]["name"]
    return "predecessor" if same_name else "foreign"


def stamped(wanted: Mapping[str, Any]) -> Json:
    """The child as it is sent: marked with its owner's uid and the digest of what was wanted."""
    child: Json = copy.deepcopy(dict(wanted))
    controller = controller_of(child)
    if controller is None:
        raise ValueError(f"{child['kind']} {child['metadata']['name']} has no owner")
    annotations = child["metadata"].setdefault("annotations", {})
    annotations[ANNOTATION_OWNER] = controller["uid"]
    annotations[ANNOTATION_APPLIED] = digest(wanted)
    return child


def digest(document: object) -> str:
    """16 hexadecimal digits of a JSON document."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
