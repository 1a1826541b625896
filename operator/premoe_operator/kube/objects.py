"""Kubernetes objects as JSON: identity, ownership, and which wanted fields an observed object lacks. Pure.

An object is ours when its controller owner reference names the PrunedModel's uid. An annotation repeats that uid, so
that an object whose owner references somebody stripped can be told from a foreign one, and from one that a deleted
PrunedModel of the same name left behind.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple, TypeAlias

from premoe_operator.children.hashes import digest
from premoe_operator.kube.kinds import PRUNED_MODEL, Kind, kind_of

Json: TypeAlias = dict[str, Any]  # objects of the API are passed through, whatever they hold

MODEL_LABEL = "premoe.dev/model"
OWNER_ANNOTATION = "premoe.dev/owner-uid"
APPLIED_ANNOTATION = "premoe.dev/applied"
RESULT_ANNOTATION = "premoe.dev/result"

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
        return "stripped" if annotation(obj, OWNER_ANNOTATION) == uid_of(owner) else "foreign"
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
    annotations[OWNER_ANNOTATION] = controller["uid"]
    annotations[APPLIED_ANNOTATION] = digest(wanted)
    return child


_MERGED_LISTS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "ownerReferences": "uid",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
"""Lists whose entries server-side apply merges by a key: others may add entries. All other lists are taken whole."""

_WHOLE_MAPS = frozenset({"selector", "matchLabels", "podSelector", "namespaceSelector", "nodeSelector"})
"""Maps that the API takes whole: a key that somebody added changes what ours means."""

_QUANTITIES = frozenset({"requests", "limits", "sizeLimit"})


def difference(wanted: object, observed: object, path: tuple[str, ...] = ()) -> str:
    """Path of the first wanted field that the observed object lacks or has otherwise; empty when there is none.

    Fields that others added are no difference. A wanted value that is empty, zero or false equals an absent one,
    because the API drops those; quantities are compared by value, because the API rewrites them.
    """
    if not wanted and not observed:
        return ""
    if isinstance(wanted, Mapping):
        if not isinstance(observed, Mapping):
            return ".".join(path)
        if path and path[-1] in _WHOLE_MAPS and observed.keys() - wanted.keys():
            return ".".join(path)
        found = (difference(value, observed.get(name), (*path, str(name))) for name, value in wanted.items())
        return next(filter(None, found), "")
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        if not isinstance(observed, Sequence) or isinstance(observed, str):
            return ".".join(path)
        return _list_difference(wanted, observed, path)
    if wanted == observed:
        return ""
    if _QUANTITIES.intersection(path):
        amount = _quantity(wanted)
        if amount is not None and amount == _quantity(observed):
            return ""
    return ".".join(path)


def _list_difference(wanted: Sequence[Any], observed: Sequence[Any], path: tuple[str, ...]) -> str:
    merge_key = _merge_key(wanted, path)
    if merge_key is None:
        if len(wanted) != len(observed):
            return ".".join(path)
        pairs = [(item, observed[index], str(index)) for index, item in enumerate(wanted)]
    else:
        by_key = {item.get(merge_key): item for item in observed if isinstance(item, Mapping)}
        pairs = [(item, by_key.get(item[merge_key]), str(item[merge_key])) for item in wanted]
    return next(filter(None, (difference(item, other, (*path, name)) for item, other, name in pairs)), "")


def _merge_key(wanted: Sequence[Any], path: tuple[str, ...]) -> str | None:
    if path[-1:] == ("ports",):
        if path == ("spec", "ports"):  # of a Service; a network policy's are taken whole
            return "port"
        key = "containerPort"
    else:
        key = _MERGED_LISTS.get(path[-1] if path else "", "")
    return key if key and all(isinstance(item, Mapping) and key in item for item in wanted) else None


_SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(1000),
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
}


def _quantity(value: object) -> Decimal | None:
    text = str(value)
    digits = text.rstrip("mkKMGTi")
    try:
        return Decimal(digits) * _SUFFIXES[text[len(digits) :]]
    except (InvalidOperation, KeyError):
        return None
