"""`response_format`: what is taken, and which field a refusal names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from premoe_gateway.domain import AnswerFormat
from premoe_gateway.openai.answers import error_body
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.requests import parse_chat, parse_completion

from premoe_runtime.formats.errors import InvalidInput

Json = dict[str, Any]


def parsed(response_format: object) -> AnswerFormat | None:
    common = {"model": "m", "response_format": response_format}
    chat = parse_chat(json.dumps({**common, "messages": [{"role": "user", "content": "hi"}]}).encode()).ask
    assert parse_completion(json.dumps({**common, "prompt": "hi"}).encode()).ask.format == chat.format
    return chat.format


def named(**fields: object) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "point", **fields}}


def test_formats() -> None:
    assert parsed(None) is parsed({"type": "text"}) is None
    assert parsed({"type": "json_object"}) == AnswerFormat('{"type": "object"}', strict=True)
    assert parsed(named(schema={"const": "é"}, strict=True)) == AnswerFormat('{"const": "é"}', strict=True)
    assert parsed(named(schema=None, strict=None, description="x")) == AnswerFormat('{"type": "object"}', strict=False)
    assert parsed(named(schema={"const": "\ud83d"})) == AnswerFormat('{"const": "\ufffd"}', strict=False)


SCHEMA = "response_format.json_schema"
BAD: dict[str, tuple[object, str]] = {
    "no object": ("json_object", "response_format"),
    "list": ([], "response_format"),
    "no type": ({}, "response_format.type"),
    "unknown type": ({"type": "xml"}, "response_format.type"),
    "type of no kind": ({"type": ["text"]}, "response_format.type"),
    "no schema": ({"type": "json_schema"}, SCHEMA),
    "schema of no kind": ({"type": "json_schema", "json_schema": "x"}, SCHEMA),
    "no name": (named(name=None), f"{SCHEMA}.name"),
    "number as name": (named(name=5), f"{SCHEMA}.name"),
    "list as schema": (named(schema=[]), f"{SCHEMA}.schema"),
    "text as strict": (named(strict="yes"), f"{SCHEMA}.strict"),
    "number too large": (named(schema={"maximum": json.loads("1e999")}), f"{SCHEMA}.schema"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_formats_name_the_field(case: tuple[object, str]) -> None:
    body = json.dumps({"model": "m", "prompt": "hi", "response_format": case[0]}).replace("Infinity", "1e999")
    with pytest.raises(BadParameter) as caught:
        parse_completion(body.encode())
    assert caught.value.param == case[1]


def test_what_only_the_worker_can_refuse_names_the_field_too() -> None:
    body = error_body(InvalidInput("response_format: no", reason="RESPONSE_FORMAT_INVALID"))
    assert body["error"] == {
        "message": "response_format: no",
        "type": "invalid_request_error",
        "param": "response_format",
        "code": "response_format_invalid",
    }
