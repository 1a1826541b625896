"""The OpenAPI description of the HTTP API, made from the models that read requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

from premoe_gateway.openai.requests import ChatBody, CompletionBody
from premoe_gateway.openai.responses import ASKS_NOTHING, ResponseBody
from premoe_gateway.openai.tokens import DetokenizeBody, TokenizeBody
from premoe_gateway.openai.unsupported import IGNORED, ONLY

Json = dict[str, Any]

_REFUSALS = {
    400: "A field is wrong, not supported, or does not fit.",
    404: "No such model or pattern.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    422: "No stored task fits, and the policy is to refuse.",
    408: "The request did not come in time.",
    429: "The queue is full, or the key has used up what it may.",
    500: "A fault of the server.",
    503: "No worker answers.",
    504: "The answer took too long.",
}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_LEFT_OUT = ("$ref", "default", "discriminator")
_CHOICES: Json = {"type": "array", "items": {"type": "object", "required": ["index", "finish_reason"]}}
_ANSWER: Json = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage", "premoe"],
    "properties": {"choices": _CHOICES, "usage": {"type": "object"}, "premoe": {"type": "object"}},
}
_RESPONSE: Json = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "model", "output", "usage", "premoe"],
    "properties": {
        "object": {"const": "response"},
        "status": {"enum": ["completed", "incomplete"]},
        "output": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["id", "type", "status"]}},
        "usage": {"type": "object", "required": ["input_tokens", "output_tokens", "total_tokens"]},
        "premoe": {"type": "object"},
    },
}
_MODEL: Json = {"type": "object", "required": ["id", "object", "created", "owned_by", "max_model_len", "premoe"]}
_MODELS: Json = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
}
_TOKENS: Json = {
    "type": "object",
    "required": ["count", "max_model_len", "tokens", "token_strs"],
    "properties": {
        "count": {"type": "integer"},
        "max_model_len": {"type": "integer"},
        "tokens": {"type": "array", "items": {"type": "integer"}},
        "token_strs": {"type": ["array", "null"], "items": {"type": "string"}},
    },
}
_TEXT: Json = {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}}
_STATUS: Json = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
_VERSION: Json = {"type": "object", "required": ["version"], "properties": {"version": {"type": "string"}}}


def description(open_paths: Collection[str] | None, more: Json) -> Json:
    """OpenAPI 3.1. ``open_paths``: those that need no API key; None: none needs one. ``more``: paths beside ours."""
    health = {200: ("A worker serves.", _STATUS), 503: ("None does.", _STATUS)}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    document: Json = {
        "openapi": "3.1.0",
        "info": {"title": "PreMoE", "version": version("premoe")},
        "paths": {
            "/v1/chat/completions": {"post": _answering(ChatBody.model_json_schema(), "Answer a conversation.")},
            "/v1/completions": {"post": _answering(CompletionBody.model_json_schema(), "Continue a prompt.")},
            "/v1/responses": {
                "post": _answering(ResponseBody.model_json_schema(), "Answer a conversation.", _RESPONSE, ASKS_NOTHING)
            },
            "/tokenize": {"post": _asking(TokenizeBody.model_json_schema(), "Tokens of a prompt.", _TOKENS)},
            "/detokenize": {"post": _asking(DetokenizeBody.model_json_schema(), "Text of tokens.", _TEXT)},
            "/v1/models": {"get": _getting("What is served.", {200: ("All of it.", _MODELS)})},
            "/v1/models/{name}": {
                "parameters": [name],
                "get": _getting("One model.", {200: ("It.", _MODEL), 404: (_REFUSALS[404], _ERROR)}),
            },
            "/health": {"get": _getting("Whether a worker serves.", health)},
            "/ready": {"get": _getting("The same.", health)},
            "/healthz": {"get": _getting("Whether the gateway runs.", {200: ("It does.", _STATUS)})},
            "/version": {"get": _getting("Version of the gateway.", {200: ("It.", _VERSION)})},
            **more,
        },
    }
    if open_paths is not None:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if path not in open_paths and method != "parameters":
                    operation["security"] = [{"key": []}]
                    operation["responses"]["401"] = _described("No API key, or none of this gateway's.", _ERROR)
    return document


def reading(summary: str, schema: Json, *refusals: int) -> Json:
    """A GET that answers with one kind of JSON, or with an error of these status codes."""
    return _getting(summary, {200: ("It.", schema), **{code: (_REFUSALS[code], _ERROR) for code in refusals}})


def _answering(body: Json, summary: str, answer: Json = _ANSWER, only: Mapping[str, tuple[object, ...]] = ONLY) -> Json:
    operation = _asking(body, summary, answer, only)
    # A stream is a sequence of such events, which JSON schema cannot describe.
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return operation


def _asking(body: Json, summary: str, answer: Json, only: Mapping[str, tuple[object, ...]] = ONLY) -> Json:
    answers = {code: (text, _ERROR) for code, text in _REFUSALS.items()}
    operation = _getting(summary, {200: ("The answer.", answer), **answers})
    content = {"application/json": {"schema": _with_every_field(body, only)}}
    return {**operation, "requestBody": {"required": True, "content": content}}


def _getting(summary: str, responses: dict[int, tuple[str, Json]]) -> Json:
    return {"summary": summary, "responses": {str(code): _described(*each) for code, each in responses.items()}}


def _described(text: str, schema: Json) -> Json:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _with_every_field(body: Json, table: Mapping[str, tuple[object, ...]]) -> Json:
    """The model's schema with what is passed over, and with what is taken only where it asks for nothing."""
    definitions = body.pop("$defs", {})
    properties: Json = {
        name: _inlined(schema, definitions)
        if name in body.get("required", [])
        else _or_null(_inlined(schema, definitions))
        for name, schema in body["properties"].items()
    }
    only = {name: {"enum": [*values, None]} for name, values in table.items() if name not in properties}
    return {**body, "properties": {**{name: {} for name in sorted(IGNORED)}, **properties, **only}}


def _inlined(schema: Json, definitions: Json) -> Json:
    """Without references, in whatever it holds."""
    name = schema.get("$ref", "").rpartition("/")[2]
    rest = {key: _plain(value, definitions) for key, value in schema.items() if key not in _LEFT_OUT}
    return {**_inlined(definitions[name], definitions), **rest} if name else rest


def _plain(value: Any, definitions: Json) -> Any:
    if isinstance(value, list):
        return [_plain(each, definitions) for each in value]
    return _inlined(value, definitions) if isinstance(value, dict) else value


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}
