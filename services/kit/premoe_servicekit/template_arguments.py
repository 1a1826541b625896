"""What a request may say to a chat template beside messages and tools: flat values by name, `chat_template_kwargs`."""

from __future__ import annotations

MAX_ARGUMENTS = 16
MAX_CHARACTERS = 1024
"""Of a name or a text."""
MOST = 2**53
"""Of a number, either way: what every JSON reader has exactly."""
TEMPLATE_ARGUMENTS = {
    "type": "object",
    "maxProperties": MAX_ARGUMENTS,
    "propertyNames": {"maxLength": MAX_CHARACTERS},
    "additionalProperties": {
        "anyOf": [
            {"type": "boolean"},
            {"type": "number", "minimum": -MOST, "maximum": MOST},
            {"type": "string", "maxLength": MAX_CHARACTERS},
        ]
    },
}
"""Their JSON schema."""


def fault_of(given: object) -> str:
    """Why they cannot be given; empty: they can."""
    if not isinstance(given, dict) or len(given) > MAX_ARGUMENTS:
        return f"must be an object of at most {MAX_ARGUMENTS} arguments"
    for name, value in given.items():
        if len(name) > MAX_CHARACTERS:
            return f"names have at most {MAX_CHARACTERS} characters"
        is_number = isinstance(value, int | float) and -MOST <= value <= MOST
        if not is_number and not (isinstance(value, str) and len(value) <= MAX_CHARACTERS):
            return f"{name} must be true, false, a number up to 2^53 or a text of at most {MAX_CHARACTERS} characters"
    return ""
