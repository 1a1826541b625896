"""The console's documents as OpenAPI describes them."""

from __future__ import annotations

from typing import Any

from premoe_gateway.openai.description import reading

Json = dict[str, Any]

_MASKS: Json = {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-f]+$"}}
_MOVED: Json = {"type": "object", "required": ["in", "out"], "properties": {"in": _MASKS, "out": _MASKS}}
_WORKER: Json = {
    "type": "object",
    "required": ["address", "serving"],
    "properties": {
        "address": {"type": "string"},
        "serving": {"type": "boolean"},
        "resident": _MASKS,
        "moved": {"anyOf": [_MOVED, {"type": "null"}]},
        "generation": {"type": "integer"},
    },
}
_RESIDENCY: Json = {
    "type": "object",
    "required": ["poll_s", "workers", "left_out"],
    "properties": {
        "poll_s": {"type": "number"},
        "workers": {"type": "array", "items": _WORKER},
        "left_out": {"type": "integer"},
    },
}
_PATTERN: Json = {
    "type": "object",
    "required": ["id", "task", "kind", "kept"],
    "properties": {
        "id": {"type": "string"},
        "task": {"type": "string"},
        "kind": {"enum": ["specialist", "generalist"]},
        "kept": _MASKS,
    },
}
_PATTERNS: Json = {
    "type": "object",
    "required": ["model", "budget", "layers", "experts", "patterns", "overlaps", "left_out"],
    "properties": {
        "patterns": {"type": "array", "items": _PATTERN},
        "overlaps": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        "left_out": {"type": "integer"},
    },
}
_MODEL: Json = {
    "name": "model",
    "in": "query",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
}


def paths() -> Json:
    """The console's path items, new ones each time: a gateway with API keys adds to them."""
    kept = reading("Which experts the stored patterns of a model keep.", _PATTERNS, 400, 404, 500, 503)
    return {
        "/premoe/v1/residency": {"get": reading("Which experts are resident on every worker.", _RESIDENCY)},
        "/premoe/v1/patterns": {"parameters": [_MODEL], "get": kept},
    }
