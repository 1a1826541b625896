"""Tools and their calls as chat templates want them."""

from __future__ import annotations

import json
from typing import Any

from premoe_runtime.formats.errors import InvalidInput
from premoe_worker.domain import Tool, Turn

Json = dict[str, Any]
_NO_PARAMETERS: Json = {"type": "object", "properties": {}}


def fields_of(turn: Turn) -> Json:
    """A turn as templates read it; arguments as objects, for they write JSON themselves. Raises InvalidInput."""
    fields: Json = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _object(call.arguments, f"arguments of {call.name}")},
            }
            for call in turn.tool_calls
        ]
    if turn.tool_call_id:
        fields["tool_call_id"] = turn.tool_call_id
    return fields


def listed(tool: Tool) -> Json:
    """A tool as templates read it. Raises InvalidInput."""
    function = {"name": tool.name, "description": tool.description, "parameters": parameters_of(tool)}
    return {"type": "function", "function": function}


def parameters_of(tool: Tool) -> Json:
    """The schema of a tool's arguments. Raises InvalidInput."""
    return _object(tool.parameters, f"parameters of {tool.name}") if tool.parameters else _NO_PARAMETERS


def _object(text: str, what: str) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidInput(f"tools: the {what} must be a JSON object", reason="TOOLS_INVALID")
    return value
