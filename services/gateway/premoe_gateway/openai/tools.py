"""Tools in OpenAI's form: what may be called, whether it must be, and calls in a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from premoe_servicekit.texts import whole_text

from premoe_gateway.domain import NO_TOOLS, Tool, ToolCall, Tools
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.formats import json_text

_T = TypeVar("_T")
MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NAMED = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_FUNCTION: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": _NAMED,
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
        "strict": {"type": ["boolean", "null"]},
    },
}
_TYPE = {"const": "function"}
CALLS = {
    "type": ["array", "null"],
    "items": {
        "type": "object",
        "required": ["id", "function"],
        "properties": {
            "id": {"type": "string", "minLength": 1},
            "type": _TYPE,
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _NAMED, "arguments": {"type": "string"}},
            },
        },
    },
}
TOOLS = {
    "type": "array",
    "maxItems": MAX_TOOLS,
    "items": {
        "type": "object",
        "required": ["type", "function"],
        "properties": {"type": _TYPE, "function": _FUNCTION},
    },
}
_CHOICES = {"enum": ["none", "auto", "required"]}
TOOL_CHOICE = {
    "anyOf": [
        _CHOICES,
        {
            "type": "object",
            "required": ["type", "function"],
            "properties": {
                "type": _TYPE,
                "function": {"type": "object", "required": ["name"], "properties": {"name": _NAMED}},
            },
        },
    ]
}
FLAT_TOOLS = {
    **TOOLS,
    "items": {
        **_FUNCTION,
        "required": ["type", *_FUNCTION["required"]],
        "properties": {"type": _TYPE, **_FUNCTION["properties"]},
    },
}
FLAT_TOOL_CHOICE = {
    "anyOf": [
        _CHOICES,
        {"type": "object", "required": ["type", "name"], "properties": {"type": _TYPE, "name": _NAMED}},
    ]
}


def parse_tools(tools: object, choice: object, parallel: bool | None, *, flat: bool = False) -> Tools:
    """`tools`, `tool_choice` and `parallel_tool_calls`. Raises BadParameter.

    ``flat``: what says a function stands beside its type.
    """
    offered = _offered([] if tools is None else tools, flat)
    required, name = _choice(choice, flat)
    if choice is not None and (required or name) and not offered:
        raise BadParameter("tool_choice: there are no tools to call", "tool_choice")
    if name and name not in {tool.name for tool in offered}:
        place = "tool_choice.name" if flat else "tool_choice.function.name"
        raise BadParameter(f"tool_choice: {name} is none of the tools", place)
    if choice == "none" or not offered:
        return NO_TOOLS
    return Tools(offered, required, name, single=parallel is False)


def parse_calls(calls: object, place: str) -> tuple[ToolCall, ...]:
    """`tool_calls` of an assistant's message. Raises BadParameter."""
    if not isinstance(calls, list):
        raise BadParameter(f"{place}: must be a list of calls", place)
    return tuple(_call(call, f"{place}[{number}]") for number, call in enumerate(calls))


def _offered(tools: object, flat: bool) -> tuple[Tool, ...]:
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise BadParameter(f"tools: must be a list of at most {MAX_TOOLS} functions", "tools")
    found: dict[str, Tool] = {}
    for number, tool in enumerate(tools):
        function, place = _function(tool, f"tools[{number}]", flat=flat)
        one = _tool(function, place)
        if one.name in found:
            raise BadParameter(f"tools: {one.name} is there twice", f"{place}.name")
        found[one.name] = one
    return tuple(found.values())


def _tool(function: Mapping[str, object], place: str) -> Tool:
    description = _given(function, "description", str, place) or ""
    parameters = _given(function, "parameters", dict, place)
    return Tool(
        _name(function, place),
        whole_text(description),
        "" if parameters is None else json_text(parameters, f"{place}.parameters"),
        bool(_given(function, "strict", bool, place)),
    )


def _choice(choice: object, flat: bool) -> tuple[bool, str]:
    """Whether a call is required, and of which tool."""
    if choice is None or isinstance(choice, str):
        if choice not in (None, "none", "auto", "required"):
            raise BadParameter("tool_choice: must be none, auto, required or a function", "tool_choice")
        return choice == "required", ""
    return True, _name(*_function(choice, "tool_choice", flat=flat))


def _call(call: object, place: str) -> ToolCall:
    function, where = _function(call, place)
    return call_of(call_id_of(call, "id", place), function, where)


def call_id_of(holder: object, name: str, place: str) -> str:
    """The id of a call, from the field of that name. Raises BadParameter."""
    call_id = _given(holder, name, str, place) if isinstance(holder, dict) else None
    if not call_id:
        raise BadParameter(f"{place}.{name}: must be given", f"{place}.{name}", "MISSING_PARAMETER")
    return whole_text(call_id)


def call_of(call_id: str, function: Mapping[str, object], where: str) -> ToolCall:
    """A call of the function with that ``name`` and ``arguments``. Raises BadParameter."""
    arguments = _given(function, "arguments", str, where) or "{}"
    try:
        whole = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise BadParameter(f"{where}.arguments: must be a JSON object, as text", f"{where}.arguments")
    return ToolCall(call_id, _name(function, where), whole_text(arguments))


def _function(value: object, place: str, *, flat: bool = False) -> tuple[Mapping[str, object], str]:
    """With its place."""
    if not isinstance(value, dict):
        raise BadParameter(f"{place}: must be an object with type and function", place)
    if value.get("type", "function") != "function":
        raise BadParameter(f"{place}.type: must be function", f"{place}.type", "UNSUPPORTED_PARAMETER")
    if flat:
        return value, place
    function = value.get("function")
    if not isinstance(function, dict):
        raise BadParameter(f"{place}.function: must be an object with a name", f"{place}.function")
    return function, f"{place}.function"


def _name(function: Mapping[str, object], place: str) -> str:
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"{place}.name: must be 1 to 64 letters, digits, underscores and dashes"
        raise BadParameter(message, f"{place}.name")
    return name


_WORDS: dict[type, str] = {str: "a string", dict: "an object", bool: "true or false"}


def _given(function: Mapping[str, object], name: str, kind: type[_T], place: str) -> _T | None:
    value = function.get(name)
    if value is not None and not isinstance(value, kind):
        raise BadParameter(f"{place}.{name}: must be {_WORDS[kind]}", f"{place}.{name}")
    return value
