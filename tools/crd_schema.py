"""From pydantic's JSON schema to a structural schema, which is all that a CustomResourceDefinition takes.

Structural means: no ``$ref``, every level has a type, and neither ``additionalProperties: false`` nor unions with
null. Unknown fields are pruned by the API server instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crd_rules import Rule
from premoe_operator.api.fields import Part

Schema = dict[str, Any]

INT32_MAX = 2**31 - 1
_KEPT = (
    "description",
    "enum",
    "format",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
)
LIST_KEYS: dict[tuple[str, str], str] = {
    ("Patterns", "tasks"): "name",
    ("Resources", "claims"): "name",
    ("PrunedModelSpec", "imagePullSecrets"): "name",
    ("PrunedModelStatus", "conditions"): "type",
}
"""Lists that are maps by the named key."""
SETS = frozenset({("Patterns", "preload"), ("Patterns", "deny")})
"""Lists without duplicates."""
NOT_STORED = frozenset({("Jobs", "pack"), ("Patterns", "deny"), ("WorkerPlacement", "whenUnsatisfiable")})
"""Fields whose default is not written into objects: they came later than the parts that they are in, and an operator
that is rolled back refuses every object that has a field which it does not know."""


def structural(root: type[Part], rules: Mapping[str, tuple[Rule, ...]], *, defaults: bool = True) -> Schema:
    """The structural schema of a class, CEL rules attached under ``Class`` and ``Class.field``.

    Without ``defaults`` the API server adds nothing to what is written: status is the operator's to write.
    """
    document = root.model_json_schema(by_alias=True)
    return _Converter(document.get("$defs", {}), rules, defaults).object(root.__name__, document)


class _Converter:
    def __init__(
        self, definitions: Mapping[str, Schema], rules: Mapping[str, tuple[Rule, ...]], defaults: bool
    ) -> None:
        self._definitions = definitions
        self._rules = rules
        self._defaults = defaults

    def object(self, name: str, source: Schema, description: str = "") -> Schema:
        """A class as an object with its properties inline."""
        schema: Schema = {"type": "object", "description": _line(description or source.get("description", ""))}
        schema["properties"] = {
            field: self._field(name, field, below) for field, below in source.get("properties", {}).items()
        }
        if source.get("required"):
            schema["required"] = list(source["required"])
        return self._with_rules(schema, name)

    def _field(self, owner: str, field: str, source: Schema) -> Schema:
        schema = self._any(source)
        if (owner, field) in LIST_KEYS:
            schema |= {
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": [LIST_KEYS[owner, field]],
            }
        elif (owner, field) in SETS:
            schema["x-kubernetes-list-type"] = "set"
        elif schema["type"] == "array":
            schema["x-kubernetes-list-type"] = "atomic"
        is_stored = self._defaults and (owner, field) not in NOT_STORED
        default = _default(schema, source) if is_stored else None
        if default is not None:
            schema["default"] = default
        return self._with_rules(schema, f"{owner}.{field}")

    def _any(self, source: Schema) -> Schema:
        """Any value. What may be null in Python may be absent in the resource."""
        if "anyOf" in source:
            (only,) = (each for each in source["anyOf"] if each.get("type") != "null")
            source = {**only, **{key: value for key, value in source.items() if key != "anyOf"}}
        if "$ref" in source:
            name = source["$ref"].rpartition("/")[2]
            return self.object(name, self._definitions[name], source.get("description", ""))
        schema: Schema = {"type": source["type"]}
        schema |= {key: source[key] for key in _KEPT if key in source}
        if "const" in source:
            schema["enum"] = [source["const"]]
        if "description" in schema:
            schema["description"] = _line(schema["description"])
        if schema["type"] == "integer":
            schema["format"] = "int32" if source.get("maximum", INT32_MAX + 1) <= INT32_MAX else "int64"
        if schema["type"] == "array":
            schema["items"] = self._any(source["items"])
        if schema["type"] == "object":
            schema |= self._map(source)
        return schema

    def _map(self, source: Schema) -> Schema:
        values = source.get("additionalProperties", True)
        if values is True:
            return {"x-kubernetes-preserve-unknown-fields": True}
        return {"additionalProperties": self._any(values)}

    def _with_rules(self, schema: Schema, where: str) -> Schema:
        rules = self._rules.get(where)
        return {**schema, "x-kubernetes-validations": [rule.document() for rule in rules]} if rules else schema


def _default(schema: Schema, source: Schema) -> Any:
    """The default to write into stored objects; None: none.

    That of a part is written out: the API server checks rules on the default itself, before it fills in what is below.
    Empty texts, lists and maps are the same as absent ones and would only clutter what users read back.
    """
    default = source.get("default")
    if schema["type"] == "object" and "properties" in schema and default is not None:
        return {name: below["default"] for name, below in schema["properties"].items() if "default" in below}
    return None if default in (None, "", [], {}) else default


def _line(text: str) -> str:
    return " ".join(text.split())
