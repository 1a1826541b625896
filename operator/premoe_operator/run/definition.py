"""Whether the API server's definition of PrunedModel has every field that this operator knows.

It drops fields that it does not know, so a spec would arrive in part. Its OpenAPI document says so to every caller;
reading the definition itself would take a right beyond the namespaces that the operator serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from crd import schema

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
    ours = schema()
    missing = [*unknown_fields(_part(ours, "spec"), _part(served, "spec"), "spec")]
    missing += unknown_fields(_part(ours, "status"), _part(served, "status"), "status")
    if missing:
        named = ", ".join(missing[:NAMED_FIELDS]) + (", …" if len(missing) > NAMED_FIELDS else "")
        message = f"the definition of PrunedModel in this cluster does not know {named}"
        raise InvalidInput(f"{message}: upgrade the release of premoe-crds first", reason="DEFINITION_OLDER")


def unknown_fields(wanted: Mapping[str, Json], served: Mapping[str, Json], path: str) -> Iterator[str]:
    """Paths of what one structural schema has and the other has not, the topmost only."""
    theirs: Mapping[str, Json] = served.get("properties", {})
    for name, below in wanted.get("properties", {}).items():
        if name in theirs:
            yield from unknown_fields(below, theirs[name], f"{path}.{name}")
        else:
            yield f"{path}.{name}"
    if "items" in wanted and "items" in served:
        yield from unknown_fields(wanted["items"], served["items"], f"{path}[]")


def _part(of: Json, name: str) -> Json:
    found: Json = of.get("properties", {}).get(name, {})
    return found


def _served(document: Json) -> Json | None:
    ours = {"group": PRUNED_MODEL.group, "version": PRUNED_MODEL.version, "kind": PRUNED_MODEL.name}
    schemas: Mapping[str, Json] = document.get("components", {}).get("schemas", {})
    return next((found for found in schemas.values() if ours in found.get("x-kubernetes-group-version-kind", [])), None)
