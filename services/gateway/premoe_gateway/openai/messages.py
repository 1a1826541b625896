"""Messages of a conversation in OpenAI's form, untrusted, as turns; and what is wrong with a request, by its field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from premoe_gateway.domain import Turn
from premoe_runtime.formats.errors import InvalidInput

_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
MESSAGES = {
    "type": "array",
    "minItems": 1,
    "description": "The last one is the user's.",
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
        },
    },
}
_ROLES: Mapping[object, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class BadParameter(InvalidInput):
    """A request body that cannot be honoured; ``param`` names the field."""

    def __init__(self, message: str, param: str, reason: str = "INVALID_PARAMETER") -> None:
        super().__init__(message, reason=reason)
        self.param = param


def whole_text(text: str) -> str:
    """``text`` with U+FFFD for halves of surrogate pairs: JSON can carry what UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def turn_of(message: object, place: str) -> Turn:
    """One message. Keys that only tag it are passed over; what it cannot be rendered without is refused by name."""
    if not isinstance(message, dict):
        raise BadParameter(f"{place}: must be an object with role and content", place)
    role = message.get("role")
    if role in ("tool", "function"):
        raise BadParameter(f"{place}: answers of tools are not supported", f"{place}.role", "UNSUPPORTED_PARAMETER")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadParameter(f"{place}.role: must be system, developer, user or assistant", f"{place}.role")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise BadParameter(f"{place}.{name}: not supported", f"{place}.{name}", "UNSUPPORTED_PARAMETER")
    content = message.get("content")
    if content is None and role == "assistant":
        # What an assistant said that refused, or that only called tools; the calls themselves are refused above.
        refusal = message.get("refusal")
        content = refusal if isinstance(refusal, str) else ""
    return Turn(_ROLES[role], _content(content, f"{place}.content"))


def _content(content: object, place: str) -> str:
    if isinstance(content, str):
        return whole_text(content)
    if not isinstance(content, list):
        raise BadParameter(f"{place}: must be a string or a list of text parts", place)
    return "".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))


def _part(part: object, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise BadParameter(f"{place}: must be an object with type and text", place)
    if kind not in ("text", "input_text", "refusal"):
        message = f"{place}: parts of type {kind!r} are not supported; send text"
        raise BadParameter(message, f"{place}.type", "UNSUPPORTED_PARAMETER")
    name = "refusal" if kind == "refusal" else "text"
    text = part.get(name)
    if not isinstance(text, str):
        raise BadParameter(f"{place}.{name}: must be a string", f"{place}.{name}")
    return whole_text(text)
