"""The reference of PrunedModel's fields in Markdown, from its structural schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_KUBERNETES_OWN = frozenset({"affinity"})
"""Fields below which everything is as in a pod's spec."""

_HEAD = """\
# PrunedModel reference

Generated from the schema (version {version}) by `make crds`; `kubectl explain prunedmodel.spec` says the same.
Required fields are in bold. Rules are checked by the API server.
"""


def reference(schema: Schema, version: int) -> str:
    """The page: one table of spec, one of status, and the rules."""
    parts = [_HEAD.format(version=version)]
    for part in ("spec", "status"):
        rows = list(_rows(schema["properties"][part], part))
        parts.append(f"## {part}\n\n| field | type | default | what it says |\n|---|---|---|---|\n" + "\n".join(rows))
    rules = [f"| `{where}` | {message} |" for where, message in _rules(schema, "")]
    parts.append("## Rules\n\n| where | what must hold |\n|---|---|\n" + "\n".join(rules))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _rows(schema: Schema, path: str) -> Iterator[str]:
    required = schema.get("required", ())
    for name, below in schema.get("properties", {}).items():
        where = f"{path}.{name}"
        shown = f"**`{where}`**" if name in required else f"`{where}`"
        default = below.get("default")
        text = "" if default in (None, {}) else f"`{json.dumps(default)}`"
        yield f"| {shown} | {_cell(_type(below))} | {text} | {_cell(below.get('description', ''))} |"
        if name in _KUBERNETES_OWN:
            continue
        yield from _rows(below, where)
        if below["type"] == "array":
            yield from _rows(below["items"], f"{where}[]")


def _type(schema: Schema) -> str:
    if "enum" in schema:
        return " or ".join(value or '""' for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return "map"
    bounds = [f"≥ {schema['minimum']}"] if "minimum" in schema else []
    bounds += [f"≤ {schema['maximum']}"] if "maximum" in schema else []
    return f"{schema['type']} {', '.join(bounds)}".rstrip()


def _rules(schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"{path}{rule.get('fieldPath', '')}".lstrip(".") or "the whole object", _cell(rule["message"])
    for name, below in schema.get("properties", {}).items():
        if name not in _KUBERNETES_OWN:
            yield from _rules(below, f"{path}.{name}")
    if schema["type"] == "array":
        yield from _rules(schema["items"], f"{path}[]")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
