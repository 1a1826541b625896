"""The ``spec.podTemplate`` hatch: a partial pod template, of which only paths on the release's list are merged.

Through it a user gets the operator to run pods with any image, ServiceAccount or Secret of the namespace. So it is
off unless the administrator lists paths, and what is not on the list is refused, not left out in silence.

Paths are names joined by dots; items of lists that have names are in brackets: ``spec.containers[premoe-worker].env``.
A listed path allows everything below it. Lists with names merge by name; other lists are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from premoe_operator.api.names import RESERVED_LABEL_PREFIXES
from premoe_operator.children.inputs import Inputs
from premoe_operator.kube.objects import Json
from premoe_runtime.formats.errors import InvalidInput

MAX_BYTES = 16 << 10
"""Largest podTemplate, as JSON: it is copied into a Deployment, a ControllerRevision and every ReplicaSet."""

_NAMED_LISTS = frozenset({"containers", "initContainers", "volumes", "env"})
_OBJECTS = frozenset({"metadata", "metadata.labels", "metadata.annotations", "spec"})


def pod_template_refusals(inputs: Inputs) -> tuple[str, ...]:
    """One sentence for each thing in spec.podTemplate that may not be there; empty: all of it is merged."""
    return _refusals(inputs.spec.pod_template, inputs.release.pod_template.allowed_paths)


def merged_pod_template(template: Json, patch: Mapping[str, Any], allowed: Sequence[str]) -> Json:
    """The template with the patch merged in. Raises InvalidInput (POD_TEMPLATE_REFUSED) with the first refusal."""
    refused = _refusals(patch, allowed)
    if refused:
        raise InvalidInput(refused[0], reason="POD_TEMPLATE_REFUSED")
    merged: Json = _merged(template, patch)
    return merged


def _refusals(patch: Mapping[str, Any], allowed: Sequence[str]) -> tuple[str, ...]:
    size = len(json.dumps(patch))
    if size > MAX_BYTES:
        return (f"spec.podTemplate has {size} bytes; at most {MAX_BYTES} are allowed",)
    if patch and not allowed:
        return ("spec.podTemplate is off in this release; its administrator lists what it may set",)
    refusals = (_refusal(path, allowed) for path in _leaves(patch))
    return tuple(refusal for refusal in refusals if refusal)


def _refusal(path: str, allowed: Sequence[str]) -> str:
    """The refusal of one leaf; empty: allowed."""
    last = path.rpartition(".")[2]
    if path in _OBJECTS:
        return f"spec.podTemplate: {path} must be an object"
    if last in _NAMED_LISTS:
        return f"spec.podTemplate: {path} must be a list of items with names"
    if path.startswith("metadata.labels.") and path.removeprefix("metadata.labels.").startswith(
        RESERVED_LABEL_PREFIXES
    ):
        return f"spec.podTemplate: {path} is the operator's own label"
    if not any(path == root or path.startswith((f"{root}.", f"{root}[")) for root in allowed):
        return f"spec.podTemplate: {path} is not among what this release allows: {', '.join(allowed)}"
    return ""


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, below in value.items():
        path = f"{prefix}.{key}" if prefix else key
        if key in _NAMED_LISTS and _has_names(below):
            for item in below:
                rest = {name: each for name, each in item.items() if name != "name"}
                yield from _leaves(rest, f"{path}[{item['name']}]")
        elif isinstance(below, Mapping) and below:
            yield from _leaves(below, path)
        else:
            yield path


def _merged(base: Any, patch: Any, key: str = "") -> Any:
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        return {**base, **{name: _merged(base.get(name), below, name) for name, below in patch.items()}}
    if key in _NAMED_LISTS and isinstance(base, list):
        items = {item["name"]: item for item in base}
        return list({**items, **{item["name"]: _merged(items.get(item["name"]), item) for item in patch}}.values())
    return patch


def _has_names(value: object) -> bool:
    """Whether it is a list of named items that say something; brackets in a name could forge another path."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, Mapping)
            and isinstance(item.get("name"), str)
            and not set("[]") & set(item["name"])
            and len(item) > 1
            for item in value
        )
    )
