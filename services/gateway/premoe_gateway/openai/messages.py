"""Messages of a conversation in OpenAI's form, untrusted, as turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from premoe_servicekit.texts import whole_text

from premoe_gateway.domain import Turn
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.tools import CALLS, parse_calls

_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
MESSAGES = {
    "type": "array",
    "minItems": 1,
    "description": "The last one is the user's or a tool's.",
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": _PART}]},
            "tool_calls": CALLS,
            "tool_call_id": {"type": "string"},
        },
    },
}
ROLES: Mapping[object, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def turn_of(message: object, place: str) -> Turn:
    """One message. Keys that only tag it are passed over; what it cannot be rendered without is refused by name."""
    if not isinstance(message, dict):
        raise BadParameter(f"{place}: must be an object with role and content", place)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BadParameter(f"{place}.role: must be system, developer, user, assistant or tool", f"{place}.role")
    for name in ("function_call", "audio", *(() if role == "assistant" else ("tool_calls",))):
        if message.get(name):
            raise BadParameter(f"{place}.{name}: not supported", f"{place}.{name}", "UNSUPPORTED_PARAMETER")
    content = message.get("content")
    if content is None and role == "assistant":
        # What an assistant said that refused, or that only called tools.
        refusal = message.get("refusal")
        content = refusal if isinstance(refusal, str) else ""
    return Turn(
        ROLES[role],
        content_of(content, f"{place}.content"),
        parse_calls(message.get("tool_calls") or [], f"{place}.tool_calls"),
        _answered(message, place) if role == "tool" else "",
    )


def _answered(message: Mapping[str, object], place: str) -> str:
    """The call that a tool's message answers."""
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or not call_id:
        raise BadParameter(f"{place}.tool_call_id: must be the id of a call", f"{place}.tool_call_id")
    return whole_text(call_id)


def content_of(content: object, place: str) -> str:
    """The text of a string or of parts. Raises BadParameter."""
    if isinstance(content, str):
        return whole_text(content)
    if not isinstance(content, list):
        raise BadParameter(f"{place}: must be a string or a list of text parts", place)
    return "".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))


def _part(part: object, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise BadParameter(f"{place}: must be an object with type and text", place)
    if kind not in ("text", "input_text", "output_text", "refusal"):
        message = f"{place}: parts of type {kind!r} are not supported; send text"
        raise BadParameter(message, f"{place}.type", "UNSUPPORTED_PARAMETER")
    name = "refusal" if kind == "refusal" else "text"
    text = part.get(name)
    if not isinstance(text, str):
        raise BadParameter(f"{place}.{name}: must be a string", f"{place}.{name}")
    return whole_text(text)
