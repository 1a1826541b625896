"""Whether the API server's definition of PrunedModel has every field that this operator knows.

It drops fields that it does not know, so a spec would arrive in part. Its OpenAPI document says so to every caller;
reading the definition itself would take a right beyond the namespaces that the operator serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from premoe_operator.api.fields import Part
from premoe_operator.api.resources import PrunedModelSpec
from premoe_operator.api.status import PrunedModelStatus
from premoe_operator.kube.kinds import PRUNED_MODEL
from premoe_operator.kube.objects import Json
from premoe_runtime.formats.errors import InvalidInput

NAMED_FIELDS = 3


def check_definition(document: Json) -> None:
    """``document``: the API server's OpenAPI v3 document of our group and version.

    Raises InvalidInput (DEFINITION_OLDER) when fields are missing. A document without our kind says nothing: the API
    server publishes it some seconds after the definition.
    """
    served = _served(document)
    if served is None:
        return
    missing = [*unknown_fields(PrunedModelSpec, _part(served, "spec"), "spec")]
    missing += unknown_fields(PrunedModelStatus, _part(served, "status"), "status")
    if missing:
        named = ", ".join(missing[:NAMED_FIELDS]) + (", …" if len(missing) > NAMED_FIELDS else "")
        message = f"the definition of PrunedModel in this cluster does not know {named}"
        raise InvalidInput(f"{message}: upgrade the release of premoe-crds first", reason="DEFINITION_OLDER")


def unknown_fields(wanted: type[Part], served: Mapping[str, Json], path: str) -> Iterator[str]:
    """Paths of a class's fields that a structural schema lacks, the topmost only."""
    theirs: Mapping[str, Json] = served.get("properties", {})
    for name, field in wanted.model_fields.items():
        where = field.alias or name
        if where not in theirs:
            yield f"{path}.{where}"
            continue
        below = theirs[where]
        is_list = "items" in below
        for part in _parts_of(field.annotation):
            yield from unknown_fields(part, below["items"] if is_list else below, f"{path}.{where}{'[]' * is_list}")


def _parts_of(annotation: Any) -> Iterator[type[Part]]:
    """The classes of ours within a field's type: itself, an item of a list, or one that may be missing."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts_of(inner)


def _part(of: Json, name: str) -> Json:
    found: Json = of.get("properties", {}).get(name, {})
    return found


def _served(document: Json) -> Json | None:
    ours = {"group": PRUNED_MODEL.group, "version": PRUNED_MODEL.version, "kind": PRUNED_MODEL.name}
    schemas: Mapping[str, Json] = document.get("components", {}).get("schemas", {})
    return next((found for found in schemas.values() if ours in found.get("x-kubernetes-group-version-kind", [])), None)
