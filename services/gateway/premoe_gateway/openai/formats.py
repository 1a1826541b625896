"""`response_format`: what an answer's text must be."""

from __future__ import annotations

import json
from typing import Any

from premoe_servicekit.texts import whole_text

from premoe_gateway.domain import AnswerFormat
from premoe_gateway.openai.faults import BadParameter

_NAMED: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "description": {"type": ["string", "null"]},
        "schema": {"type": ["object", "null"]},
        "strict": {"type": ["boolean", "null"]},
    },
}
_PLAIN = {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}}
RESPONSE_FORMAT = {
    "anyOf": [
        _PLAIN,
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {"type": {"const": "json_schema"}, "json_schema": _NAMED},
        },
    ]
}
FLAT_FORMAT = {
    "anyOf": [
        _PLAIN,
        {
            "type": "object",
            "required": ["type", *_NAMED["required"]],
            "properties": {"type": {"const": "json_schema"}, **_NAMED["properties"]},
        },
    ]
}
_KINDS: dict[str, type] = {"name": str, "description": str, "schema": dict, "strict": bool}
_WORDS = {str: "a string", dict: "an object", bool: "true or false"}


def parse_format(value: object, at: str = "response_format", *, flat: bool = False) -> AnswerFormat | None:
    """None: any text. Whether a schema can be enforced is for the worker to say. Raises BadParameter.

    ``at``: its field; ``flat``: name and schema stand beside the type.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadParameter(f"{at}: must be an object with type", at)
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return AnswerFormat('{"type": "object"}', strict=True)
    if kind != "json_schema":
        raise BadParameter(f"{at}.type: must be text, json_object or json_schema", f"{at}.type")
    place = at if flat else f"{at}.json_schema"
    given = value if flat else value.get("json_schema")
    if not isinstance(given, dict):
        raise BadParameter(f"{place}: must be an object with name and schema", place)
    for name, needed in _KINDS.items():
        if given.get(name) is not None and not isinstance(given[name], needed):
            raise BadParameter(f"{place}.{name}: must be {_WORDS[needed]}", f"{place}.{name}")
    if not given.get("name"):
        raise BadParameter(f"{place}.name: must be given", f"{place}.name", "MISSING_PARAMETER")
    schema = {"type": "object"} if given.get("schema") is None else given["schema"]
    return AnswerFormat(json_text(schema, f"{place}.schema"), strict=bool(given.get("strict")))


def json_text(value: object, place: str) -> str:
    """As JSON that every reader takes. Raises BadParameter."""
    try:
        return whole_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError):
        raise BadParameter(f"{place}: holds numbers too large, or is nested too deeply", place) from None
